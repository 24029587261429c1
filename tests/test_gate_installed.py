"""A cached environment is verified before it is used, and made again in place if it is damaged. Needs uv, and no network."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.gate import environments, installed, locks, requirements, uv
from tests.wheels import wheel


def lock_of(path):
    return locks.completed(f"tiny @ {path.as_uri()}\n", requirements.read(f"tiny @ {path}").sources, {}, [])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A home with one environment, which tests copy."""
    directory = tmp_path_factory.mktemp("whole")
    lock = lock_of(wheel(directory / "wheels"))
    return lock, environments.install("tiny", lock, directory / "home")


@pytest.fixture
def made(whole, tmp_path):
    """A lock, and a home in which its environment is installed."""
    lock, environment = whole
    home = tmp_path / "home"
    shutil.copytree(Path(environment.python).parents[2], home, symlinks=True)
    return lock, home / environment.key


def package(directory):
    return next(directory.glob("lib/python*/site-packages")) / "tiny"


def value(environment):
    words = [environment.python, "-I", "-c", "import tiny; print(tiny.X)"]
    variables = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(words, capture_output=True, text=True, env=variables).stdout.strip()


def edit(directory):
    # In place, as an editor does: uv's own cache has the same file.
    (package(directory) / "__init__.py").write_text("X = 9\n")


def same_size_and_time(directory):
    file = package(directory) / "__init__.py"
    before = file.stat()
    file.write_text("X = 9\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def link(directory):
    file = package(directory) / "__init__.py"
    file.unlink()
    file.symlink_to("/etc/hostname")


def elsewhere(directory):
    directory.rename(directory.parent.parent / "elsewhere")
    directory.symlink_to(directory.parent.parent / "elsewhere")


DAMAGE = {
    "a package deleted": (lambda directory: shutil.rmtree(package(directory)), "is gone"),
    "its metadata deleted": (
        lambda directory: shutil.rmtree(next(package(directory).parent.glob("*-info"))),
        "is gone",
    ),
    "a file halved": (lambda directory: (package(directory) / "__init__.py").write_text("X ="), "3 bytes instead of 6"),
    "a file edited": (edit, "has changed"),
    "a file edited to the same size": (same_size_and_time, "has changed"),
    "a file added": (lambda directory: (package(directory).parent / "sitecustomize.py").touch(), "was not installed"),
    "a link in place of a file": (link, "the link is not as it was made"),
    "its interpreter deleted": (lambda directory: (directory / "bin" / "python").unlink(), "the link is not as it was"),
    "half of it missing": (lambda directory: shutil.rmtree(directory / "lib"), "is gone"),
    "a link in place of it": (elsewhere, "is no directory"),
    "a file in place of it": (lambda directory: (shutil.rmtree(directory), directory.touch()), "is no directory"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_environment_is_made_again_in_place(made, name, capsys):
    lock, directory = made
    damage, words = DAMAGE[name]
    assert installed.damage(directory, {"tiny": "1.0"}) == ""
    damage(directory)
    assert words in installed.damage(directory, {"tiny": "1.0"})
    again = environments.install("tiny", lock, directory.parent)
    said = capsys.readouterr().err
    assert said.count("is damaged and is made again") == 1 and words in said
    assert again.python == str(directory / "bin" / "python") and value(again) == "1"
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]
    environments.install("tiny", lock, directory.parent)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("seen_before", [False, True])
def test_bytecode_that_is_damaged_is_compiled_again(made, seen_before, capsys):
    lock, directory = made
    environment = environments.install("tiny", lock, directory.parent)
    assert value(environment) == "1"
    if seen_before:
        environments.install("tiny", lock, directory.parent)
    (compiled,) = (package(directory) / "__pycache__").iterdir()
    compiled.write_bytes(compiled.read_bytes()[:20])
    assert value(environment) == ""
    assert value(environments.install("tiny", lock, directory.parent)) == "1"
    assert capsys.readouterr().err == ""


def test_an_environment_of_an_earlier_release_is_compared_with_its_records(made):
    _, directory = made
    (directory / ".peft-harness.json").unlink()
    assert installed.damage(directory, {"tiny": "1.0"}) == ""
    assert installed.damage(directory, {"tiny": "2.0"}) == "lacks tiny 2.0"
    edit(directory)
    os.utime(package(directory) / "__init__.py", (2e9, 2e9))
    (directory / ".peft-harness.json").write_text("{}")
    assert "the files of tiny are not those that were installed" in installed.damage(directory, {})


def test_a_file_whose_time_alone_changed_is_no_damage(made):
    _, directory = made
    os.utime(package(directory) / "__init__.py", (1e9, 1e9))
    assert installed.damage(directory, {}) == ""


def test_uv_fetches_anew_what_it_gives_out_damaged(made, monkeypatch):
    lock, directory = made
    shutil.rmtree(directory)
    cleaned, record, run = [], installed.record, uv.run

    def run_and_note(*words, **options):
        if words[0] == "cache":  # on the user's own cache that takes half a minute
            cleaned.append(words)
            return None
        return run(*words, **options)

    monkeypatch.setattr(uv, "run", run_and_note)
    monkeypatch.setattr(installed, "record", lambda *given: record(*given) or ([] if cleaned else ["tiny"]))
    assert value(environments.install("tiny", lock, directory.parent)) == "1"
    assert cleaned == [("cache", "clean", "tiny")]


def test_two_wheels_of_one_version_are_two_stacks(tmp_path):
    one, other = (lock_of(wheel(tmp_path / body, body=f"X = {body}\n")) for body in "12")
    found = [environments.install("tiny", lock, tmp_path / "home") for lock in (one, other, one)]
    assert [value(environment) for environment in found] == ["1", "2", "1"]
    assert found[0].key == found[2].key != found[1].key
    assert found[0].pins == {"tiny": "1.0"}


def test_a_home_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "home").touch()
    with pytest.raises(UsageError, match="no environment can be made there"):
        environments.install("tiny", lock_of(wheel(tmp_path)), tmp_path / "home")
