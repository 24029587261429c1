"""Environments: how requirements are read, and that an environment is complete or absent."""

import importlib.metadata
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from harness.errors import UsageError
from harness.gate import environments, installed, requirements
from harness.gate.environments import Unresolvable
from harness.paths import keeping_bytecode
from tests.wheels import folder, wheel


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("", "no requirements given"),
        ("pins.txt", "pins.txt: no such requirements file"),
        ("transformers=>5", "'transformers=>5' is not a requirement"),
    ],
)
def test_requirements_that_cannot_be_read_are_refused(asked, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        requirements.names(asked)


def test_a_requirements_file_is_read_with_what_it_includes_and_its_hashes(tmp_path):
    (tmp_path / "more.txt").write_text("torch==2.13.0  # pinned\n\n# a comment\n")
    hashes = " \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n"
    (tmp_path / "pins.txt").write_text(f"-r more.txt\nPEFT_x==1.0{hashes}accelerate>=1 ; python_version > '3'\n")
    assert requirements.names(str(tmp_path / "pins.txt")) == ["torch", "peft-x", "accelerate"]


def test_words_may_be_separated_by_commas():
    assert requirements.names("transformers==5.1.0, peft>=0.18,<0.20") == ["transformers", "peft"]


def test_a_file_may_stand_among_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pins.txt").write_text("accelerate==1.13.0\n")
    assert requirements.names("pins.txt peft==0.20.0") == ["accelerate", "peft"]


def test_the_running_environment_is_current():
    found = environments.make("current")
    assert found.python == sys.executable
    assert found.stack["torch"].startswith("2.")
    assert environments.make("current").key == found.key


def test_of_two_releases_on_the_path_the_imported_one_counts(tmp_path, monkeypatch):
    metadata = tmp_path / "peft-0.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.0.1\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert environments.running.__wrapped__().stack["peft"] == "0.0.1"
    monkeypatch.setattr(sys, "path", [*sys.path[1:], str(tmp_path)])
    assert environments.running.__wrapped__().stack["peft"] == importlib.metadata.version("peft") != "0.0.1"


def test_a_process_in_an_environment_imports_this_harness(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = environments.make("current").run("-c", "import harness; print(harness.__file__)", capture_output=True)
    assert done.stdout.strip().endswith("harness/__init__.py")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"PYTHONDONTWRITEBYTECODE": "1"}, {"PYTHONPYCACHEPREFIX": "/cache/bytecode"}),
        ({"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": "/mine"}, {"PYTHONPYCACHEPREFIX": "/mine"}),
    ],
)
def test_bytecode_goes_to_the_cache_if_python_must_write_none(given, expected, monkeypatch):
    monkeypatch.setenv("PEFT_HARNESS_CACHE", "/cache")
    assert keeping_bytecode({"A": "1", **given}) == {"A": "1", **expected}


def test_both_sides_may_make_the_link_to_the_harness_at_once(tmp_path, monkeypatch):
    together = Barrier(8)
    for number in range(20):
        monkeypatch.setattr(environments, "cache_directory", lambda number=number: tmp_path / str(number))

        def first(_):
            together.wait()
            return environments._link_to_harness()

        with ThreadPoolExecutor(8) as threads:
            (directory,) = set(threads.map(first, range(8)))
        assert (directory / "harness" / "gate").is_dir() and len(list(directory.iterdir())) == 1


def test_an_environment_that_cannot_be_made_leaves_nothing_behind(tmp_path):
    lock = "no-such-package-anywhere==1.0 \\\n    --hash=sha256:00\n"
    with pytest.raises(Unresolvable, match="cannot be installed"):
        environments.install("no-such-package-anywhere==1.0", lock, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_an_interrupted_process_left_is_removed(tmp_path):
    """A maker is known to live by its lock alone: another container that shares the cache has other process ids."""
    held = """
import os, sys, time
from pathlib import Path
from harness.gate.environments import _partial
with _partial(Path(sys.argv[1]), "0123") as partial:
    (partial / "bin").mkdir(parents=True)
    print("made", flush=True)
    time.sleep(60)
"""
    maker = subprocess.Popen([sys.executable, "-c", held, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    with maker:
        assert maker.stdout.readline() == "made\n"
        environments._remove_leftovers(tmp_path)
        assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
        maker.kill()
    environments._remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["", "a file is gone"], ids=["whole", "damaged"])
def test_an_environment_that_another_process_made_meanwhile_stays_if_it_is_whole(tmp_path, monkeypatch, damage):
    """Somebody may use it already: there must be no moment at which its files are gone."""
    monkeypatch.setattr(installed, "damage", lambda directory, pins: damage)
    theirs, ours = tmp_path / "key", tmp_path / ".key-1-1"
    for directory in (theirs, ours):
        (directory / "bin").mkdir(parents=True)
        (directory / "bin" / "python").write_text(directory.name)
    environments._put(ours, theirs, {})
    assert (theirs / "bin" / "python").read_text() == (".key-1-1" if damage else "key")
    assert ours.exists() != bool(damage)  # `_partial` removes it
    assert {path.name for path in tmp_path.iterdir()} <= {"key", ".key-1-1"}


def test_bytecode_is_shared_by_the_same_distributions_only(tmp_path):
    def environment(name, version):
        packages = tmp_path / name / "lib" / "python3.11" / "site-packages"
        for package, number in (("same", "1"), ("other", version)):
            (packages / package).mkdir(parents=True)
            (packages / f"{package}-{number}.dist-info").mkdir()
            (packages / f"{package}-{number}.dist-info" / "RECORD").write_text(f"{package}/__init__.py,sha256=0,1\n")
        return packages

    lender, borrower = environment("lender", "1"), environment(".new", "2")
    for package in ("same", "other"):
        (lender / package / "__pycache__").mkdir()
        (lender / package / "__pycache__" / "x.pyc").write_bytes(b"code")
    environments._link_bytecode(tmp_path / ".new", tmp_path)
    assert (borrower / "same" / "__pycache__" / "x.pyc").read_bytes() == b"code"
    assert not (borrower / "other" / "__pycache__").exists()


@pytest.mark.network
def test_a_stack_keeps_the_running_torch_and_can_be_made_again_from_its_lock(tmp_path):
    asked = "transformers==5.1.0 accelerate==1.13.0 peft==0.18.1"
    made = environments.make(asked, tmp_path / "home")
    assert made.stack["transformers"] == "5.1.0"
    assert made.stack["torch"].partition("+")[0] == environments.running().stack["torch"].partition("+")[0]
    assert "--hash=sha256:" in made.lock
    done = made.run("-c", "import peft; print(peft.__version__)", capture_output=True)
    assert done.stdout.strip() == "0.18.1"
    (tmp_path / "again.txt").write_text(made.lock)
    assert environments.make(str(tmp_path / "again.txt"), tmp_path / "home").key == made.key


@pytest.mark.network
def test_requirements_that_nothing_meets_are_refused_in_the_resolvers_words(tmp_path):
    with pytest.raises(Unresolvable, match=r"'peft==99': .*there is no version of peft==99"):
        environments.make("peft==99", tmp_path)


#: A project whose build writes its environment into a file, and a file into its own folder.
BUILDS = """
import json, os, pathlib
from setuptools import setup
pathlib.Path(os.environ["MINE"], "environment.json").write_text(json.dumps(dict(os.environ)))
pathlib.Path(__file__).with_name("made_by_the_build.py").touch()
setup(name="builds", version="1.0", py_modules=[])
"""


@pytest.mark.network
def test_a_wheel_a_folder_and_a_repository_are_installed_as_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "UV_INDEX_PRIVATE_PASSWORD"):
        monkeypatch.setenv(name, "secret")
    path = wheel(tmp_path, name="tiny")
    folder(tmp_path / "repository", name="fetched")
    git = ["git", "-C", str(tmp_path / "repository"), "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "builds").mkdir()
    (tmp_path / "builds" / "setup.py").write_text(BUILDS)
    asked = f"./{path.name} builds @ ./builds fetched @ git+file://{tmp_path}/repository"
    made = environments.make(asked, tmp_path / "home", added=[("MINE", str(tmp_path))])
    assert {name: made.pins.get(name) for name in ("tiny", "builds", "fetched")} == dict.fromkeys(
        ("tiny", "builds", "fetched"), "1.0"
    )
    assert re.search(r"^fetched @ git\+file://\S+@[0-9a-f]{40}$", made.lock, re.MULTILINE)
    seen = json.loads((tmp_path / "environment.json").read_text())
    assert [path.name for path in (tmp_path / "builds").iterdir()] == ["setup.py"]
    assert "secret" not in seen.values() and seen["HOME"].endswith("/homes/builds")
    (tmp_path / "again.txt").write_text(made.lock)
    again = environments.make("again.txt", tmp_path / "home", added=[("MINE", str(tmp_path))])
    assert again.key == made.key


@pytest.mark.network
def test_a_release_without_a_wheel_is_built_only_if_it_is_named(tmp_path):
    # antlr4-python3-runtime 4.9.3 has a source archive only.
    asked = "antlr4-python3-runtime==4.9.3"
    with pytest.raises(Unresolvable, match="--build NAME lets a package's own code build it"):
        environments.make(asked, tmp_path)
    made = environments.make(asked, tmp_path, build=["antlr4_python3_runtime"])
    assert made.pins["antlr4-python3-runtime"] == "4.9.3"
    assert made.lock.startswith("--no-binary antlr4-python3-runtime\n")
