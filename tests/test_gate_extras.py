"""Optional packages: both sides of a gate have the same, and what one side cannot have is left out on both."""

import dataclasses
import importlib.metadata
import subprocess
import sys
import zipfile

import pytest

from harness import compat, environment
from harness.errors import UsageError
from harness.gate import environments, extras, locks, taken_along, uv
from harness.gate.environments import Environment, Unresolvable
from harness.paths import PACKAGE
from tests.wheels import wheel

COPIED = f"# copied deepspeed==0.19.8 sha256:{'a' * 64}\n"


def stack(*names, lacks=()):
    return Environment("x", sys.executable, dict.fromkeys(names, "1"), "", "key", (), lacks)


def test_a_stack_beside_the_running_one_gets_what_that_has_and_no_more():
    assert extras.wanted({"torch", "optuna", "deepspeed"}, beside_current=True) == ("optuna", "deepspeed")
    assert extras.wanted({"deepspeed"}, beside_current=False) == ("deepspeed", "bitsandbytes", "optuna", "tensorboard")


@pytest.mark.parametrize("name", extras.OPTIONAL)
def test_what_only_one_side_has_is_left_out_whichever_side_it_is(name):
    having, lacking = stack("torch", name), stack("torch", lacks=((name, "no wheel"),))
    assert extras.on_one_side(having, having) == extras.on_one_side(lacking, lacking) == ()
    assert extras.on_one_side(having, lacking) == ((name, "the candidate cannot have it: no wheel"),)
    assert extras.on_one_side(stack(), having) == ((name, "the baseline does not have it"),)


def test_processes_of_both_sides_do_not_find_what_is_left_out():
    hidden = dict(extras.without(stack(), ["liger-kernel", "optuna"]).added)
    assert hidden == {environment.WITHOUT: "liger-kernel,liger_kernel,optuna"}
    assert extras.without(stack(), []) == stack()


def test_upstream_and_the_suites_do_not_find_what_is_left_out():
    """In a process of its own. Upstream looks with find_spec (transformers.utils.import_utils, accelerate.utils.imports)."""
    code = (
        "import importlib.util\n"
        "from harness import environment, lacking\n"
        "def found():\n"
        "    spec = importlib.util.find_spec('optuna')\n"
        "    return environment.version('optuna'), lacking._has('optuna'), bool(spec)\n"
        "environment.hide_left_out(); print(*found())"
    )
    here = environments.running()
    done, hidden = (one.run("-c", code, capture_output=True) for one in (here, extras.without(here, ["optuna"])))
    assert done.stdout.split() == [importlib.metadata.version("optuna"), "True", "True"], done.stderr
    assert hidden.stdout.split() == ["None", "False", "False"], hidden.stderr


@pytest.fixture
def resolver(monkeypatch):
    """resolver(cannot): replace uv by one that resolves everything but these packages. Returns the list of what was asked."""
    asked = []

    def replace(*cannot):
        def resolve(requirements, build=(), added=(), extras=()):
            asked.append(tuple(extras))
            if bad := [name for name in (*extras, requirements) if name in cannot]:
                raise Unresolvable(f"'{requirements}': {bad[0]} has no wheel")
            return "".join(f"{name}==1\n" for name in (requirements, *extras))

        monkeypatch.setattr(environments, "resolve", resolve)
        monkeypatch.setattr(environments, "_not_copied", lambda asked: "")
        return asked

    return replace


def test_an_optional_package_that_does_not_fit_is_left_out_and_the_others_are_not(resolver):
    asked = resolver("optuna")
    lock, lacks = environments._resolve_with("peft", (), (), ["bitsandbytes", "optuna", "tensorboard"])
    assert lock.split() == ["peft==1", "bitsandbytes==1", "tensorboard==1"]
    assert lacks == (("optuna", "optuna has no wheel"),)
    assert len(asked) == 5


def test_requirements_that_cannot_be_met_are_refused_for_their_own_reason(resolver):
    asked = resolver("peft", "optuna")
    with pytest.raises(Unresolvable, match="peft has no wheel"):
        environments._resolve_with("peft", (), (), ["optuna"])
    assert asked == [("optuna",), ()]


# ---- taken along ----


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A package `tiny` that is installed where this process imports from."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel(tmp_path, name="tiny")) as archive:
        archive.extractall(site)
    monkeypatch.syspath_prepend(str(site))
    taken_along.of.cache_clear()
    yield site
    taken_along.of.cache_clear()


def test_the_wheel_has_the_installed_files_and_installs(tiny, tmp_path):
    copy = taken_along.of("tiny")
    (tmp_path / "one").mkdir()
    made = copy.wheel(tmp_path / "one")
    with zipfile.ZipFile(made) as archive:
        names = set(archive.namelist())
        assert {name: archive.read(name) for name in copy.files} == {n: f.read_bytes() for n, f in copy.files.items()}
        record = archive.read("tiny-1.0.dist-info/RECORD").decode().splitlines()
    assert {line.split(",")[0] for line in record} == names
    words = [sys.executable, "-m", "uv", "pip", "install", "--no-index", "--target", str(tmp_path / "to"), str(made)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "to").glob("tiny*")} >= {"tiny-1.0.dist-info"}


def test_a_change_of_a_file_makes_another_stack(tiny):
    before = taken_along.of("tiny")
    next(file for name, file in before.files.items() if name.endswith(".py")).write_text("value = 3\n")
    taken_along.of.cache_clear()
    after = taken_along.of("tiny")
    assert before.digest != after.digest
    assert locks.key(before.line) != locks.key(after.line) != locks.key("")


@pytest.mark.parametrize("name", ["tiny.so", "tiny.cpython-311-x86_64-linux-gnu.so", "__editable__.tiny.pth"])
def test_what_is_bound_to_its_environment_is_not_taken_along(tiny, name):
    (tiny / name).write_bytes(b"")
    with (tiny / "tiny-1.0.dist-info" / "RECORD").open("a") as record:
        record.write(f"{name},,\n")
    with pytest.raises(
        UsageError, match=r"tiny has no wheel, and the installed one is bound to this environment \(.*tiny"
    ):
        taken_along.of("tiny")


def test_what_is_not_installed_is_not_taken_along():
    with pytest.raises(UsageError, match="no-such-package is not installed here"):
        taken_along.of("no-such-package")


def test_another_release_of_deepspeed_than_the_installed_one_is_left_out(monkeypatch):
    copy = taken_along.Copy("deepspeed", "0.19.8", (), {}, "a" * 64)
    monkeypatch.setattr(taken_along, "of", lambda name: copy)
    assert environments._not_copied("deepspeed>=0.19 peft") == environments._not_copied("peft") == ""
    says = environments._not_copied("deepspeed==0.16.0")
    assert says == "deepspeed==0.16.0 has no wheel, and the installed 0.19.8 is another release"


def test_a_lock_names_what_is_copied_and_is_still_a_requirements_file():
    lock = f"{COPIED}peft==0.21.2\n"
    assert locks.copied(lock) == {"deepspeed": "0.19.8"}
    assert [entry.name for entry in locks.entries(lock)] == ["peft"]
    assert locks.key(lock) not in (locks.key("peft==0.21.2\n"), locks.key(lock.replace("aa", "bb")))


# ---- the supported window ----


@pytest.mark.parametrize(
    ("requirement", "old"),
    [
        ("transformers==4.40.0", True),
        ("transformers==4.45.1", True),
        ("transformers==4.45.2", False),
        ("transformers==4.45.*", False),
        ("transformers==4.36.*", True),
        ("transformers<4.45.2", True),
        ("transformers<=4.45.2", False),
        ("transformers<5,>=4.30", False),
        ("transformers~=4.36.0", True),
        ("transformers~=4.36", False),
        ("transformers>=4.30", False),
        ("transformers!=4.30", False),
        ("Torch[extra]==2.3.1+cu121", True),
        ("torch==2.4.0+cu124", False),
        ("peft", False),
        ("peft===odd", False),
        ("numpy==1.0", False),
    ],
)
def test_requirements_that_allow_old_releases_only_are_too_old(requirement, old):
    assert bool(compat.asks_for_too_old(requirement)) == old


def test_a_stack_that_is_too_old_is_named_with_the_oldest_that_is_judged():
    assert compat.too_old(dict(compat.OLDEST) | {"numpy": "1"}) is None
    assert compat.too_old({"torch": "2.13.0+cpu", "peft": None, "transformers": "odd"}) is None
    says = "peft 0.12.0 is older than peft 0.13.2, which is the oldest that is judged"
    assert compat.too_old({"torch": "2.13.0", "peft": "0.12.0"}) == says


def test_an_old_stack_is_refused_before_anything_is_resolved(monkeypatch):
    monkeypatch.setattr(uv, "run", lambda *words, **options: pytest.fail("uv was called"))
    with pytest.raises(
        environments.TooOld, match=r"transformers==4\.40\.0 is older than transformers 4\.45\.2, which is"
    ):
        environments.make("transformers==4.40.0 peft==0.10.0")


def test_an_old_stack_is_refused_before_it_is_installed(monkeypatch):
    monkeypatch.setattr(environments, "install", lambda *words: pytest.fail("it was installed"))

    def run(*words, **options):
        with open(words[words.index("--output-file") + 1], "w") as lock:
            lock.write("transformers==4.30.0\npeft==0.21.2\n")
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(uv, "run", run)
    with pytest.raises(environments.TooOld, match=r"'peft': transformers 4\.30\.0 is older than transformers 4\.45\.2"):
        environments.make("peft", extras=())


def test_the_running_stack_is_refused_too(monkeypatch):
    old = dataclasses.replace(environments.running(), pins={"transformers": "4.30.0"})
    monkeypatch.setattr(environments, "running", lambda: old)
    with pytest.raises(environments.TooOld, match=r"current: transformers 4\.30\.0 is older"):
        environments.make("current")


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "pytest", "suites", "-q"],
        pytest.param(["-m", "harness", "judge", "--model", "llama"], marks=pytest.mark.slow),
    ],
)
def test_an_installed_old_stack_is_one_sentence(tmp_path, words):
    metadata = tmp_path / "transformers-4.30.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.30.0\n")
    here = environments.running().variables()
    env = here | {"PYTHONPATH": f"{tmp_path}:{here['PYTHONPATH']}"}
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 2
    assert "transformers 4.30.0 is older than transformers 4.45.2, which is the oldest that is judged" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
