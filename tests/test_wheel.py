"""The wheel works where there is no checkout: every command, and `pytest --pyargs harness.suites`.

Commands that take minutes are marked slow; here they are only given wrong arguments.
"""

import json
import tarfile
import zipfile

import pytest

from harness.spec import RunSpec
from tests.installed import installed

__all__ = ["installed"]

COMMANDS = (
    "adapter", "ask", "bisect", "bounds", "cache", "check", "checkpoint", "clauses", "coverage", "crash", "defects", "gate",
    "history", "judge", "map", "mutants", "propose", "report", "repro", "soak", "speed", "sweep", "train",
    "trend", "where",
)  # fmt: skip

#: Run in the environment: the help of each command, by the function that the console script calls.
HELP = """
import sys
from harness.cli import main

for command in sys.argv[1:]:
    sys.argv = ["peft-harness", command, "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, command
"""


#: Run in the environment: commands one after the other, and what each printed and its exit code. As many new processes
#: would take half a minute.
ANSWERS = """
import contextlib, io, json, sys
from harness.cli import main

answers = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["peft-harness", *words]
    code, said = 0, io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            code = end.code
    answers.append([code, said.getvalue()])
print(json.dumps(answers))
"""

#: Wrong arguments -> words of the answer.
WRONG = {
    ("checkpoint", "/no/such/directory"): "no such directory",
    ("bisect", "--clause", "ABC-1", "--good", "current", "--bad", "current"): "'ABC-1' matches no clause",
    ("clauses", "--write"): "clauses --write is for a checkout",
    ("coverage", "--clause", "ABC-1"): "coverage",
    ("gate", "--baseline", "no.txt", "--candidate", "current"): "no.txt: no such requirements file",
    ("history", "H99"): "history H99: no such entry",
    ("ask", "transformers>>5"): "'transformers>>5' is not a requirement",
    ("bounds", "--table", "no.json"): "no.json: no such file",
    ("map", "no.toml"): "no.toml: no such file",
    ("map", "--on", "slurn"): "--on slurn: is neither local, slurm, kubernetes nor a FILE.py",
    ("propose", "--baseline", "peft==0.18.1", "--want", "peft"): "names no release",
    ("mutants", "--mutant", "no-such-mutant"): "'no-such-mutant' names no mutant",
    ("soak", "--times", "1"): "'--times': Input should be greater than or equal to 2",
    ("speed", "--shape", "no-such-shape"): "--shape no-such-shape",
    ("train", "--model", "/no/such/model"): "/no/such/model: no such directory",
}


@pytest.fixture
def peft_harness(installed, tmp_path):
    def run(*words):
        done = installed.run("peft-harness", *words, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr

    return run


# ---- what is packed ----


def test_one_top_level_name_is_packed(installed):
    (wheel,) = installed.wheel.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"harness"}
    assert {
        "harness/py.typed",
        "harness/session/suites.ini",
        "harness/causes/group.py",
        "harness/gate/formats/uv_lock.py",
        "harness/reports/trend.html.j2",
        "harness/upstream/checks/loss.py.j2",
        "harness/upstream/defects.html.j2",
        "harness/reports/page/page.css",
        "harness/reports/page/page.html.j2",
        "harness/reports/page/page.js",
        "harness/map/default.toml",
        "harness/map/table_schema.json",
        "harness/map/page/map.html.j2",
        "harness/map/page/map.js",
        "harness/fixtures/map/table.json",
        "harness/contract/proofs.json",
        "harness/suites/CONTRACT.md",
        "harness/suites/conftest.py",
        "harness/suites/expectations/res.toml",
        "harness/fixtures/models.py",
    } <= names


def test_the_sdist_has_what_tests_and_ci_need(installed):
    (sdist,) = installed.wheel.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "harness/cli/__init__.py",
        "suites/conftest.py",
        "fixtures/models.py",
        "tests/conftest.py",
        "ci/setup",
    } <= names
    # The link for editable installs would be packed as a second copy.
    assert not any(name.startswith("ci/editable") for name in names)


def test_the_environment_does_not_know_the_checkout(installed, tmp_path):
    code = "import harness, harness.suites, harness.fixtures; print(harness.__file__, harness.suites.__file__)"
    done = installed.run("python", "-c", code, cwd=tmp_path)
    assert all(path.startswith(str(installed.place)) for path in done.stdout.split()), done.stdout + done.stderr


# ---- commands ----


def test_each_command_has_a_help(installed, tmp_path):
    done = installed.run("python", "-c", HELP, *COMMANDS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: peft-harness") == len(COMMANDS)


def test_no_command_is_missing_here(peft_harness):
    code, said = peft_harness("--help")
    assert code == 0
    listed = [
        line.split()[0]
        for line in said.partition("Commands:")[2].splitlines()
        if line.startswith("  ") and line[2] != " "
    ]
    assert sorted(listed) == sorted(COMMANDS)


def test_subjects_can_be_imported(installed, tmp_path):
    done = installed.run("python", "-c", "import harness.subjects.hf_trainer, harness.subjects.reference", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_check_judges_a_clause(peft_harness):
    code, said = peft_harness("check", "--clause", "FRZ-10", "--", "-n", "0", "-q")
    assert code == 0, said
    assert "FRZ what is trained" in said and "2 passed" in said


@pytest.mark.slow
def test_repro_repeats_a_case_of_the_suites(peft_harness, tmp_path):
    case = tmp_path / "case.json"
    test = "test_frz.py::test_base_is_bit_identical[plain]"
    case.write_text(json.dumps({"test": test, "subject": "hf-trainer", "device": "cpu", "preload": []}))
    code, said = peft_harness("repro", case)
    assert code == 0, said
    assert "1 passed" in said


def test_repro_judges_a_spec(peft_harness, tmp_path):
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(RunSpec().but(max_steps=2).to_json()))
    code, said = peft_harness("repro", spec)
    assert code == 0, said
    assert "FRZ-15 holds" in " ".join(said.split())


def test_clauses_explains_one_and_lists_all(peft_harness):
    code, said = peft_harness("clauses", "RES-05")
    assert code == 0, said
    assert "tests/test_faults_res.py" in said
    code, said = peft_harness("clauses")
    assert code == 0 and "GEN-01" in said


@pytest.fixture(scope="module")
def answers(installed, tmp_path_factory):
    """Return what the commands of WRONG answered: words -> exit code, and what was printed."""
    directory = tmp_path_factory.mktemp("answers")
    done = installed.run("python", "-c", ANSWERS, json.dumps(list(WRONG)), cwd=directory)
    assert done.returncode == 0, done.stderr
    return dict(zip(WRONG, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("words", WRONG, ids=lambda words: words[0])
def test_wrong_arguments_are_answered_in_one_sentence(answers, words):
    code, said = answers[words]
    assert code == 2, said
    assert WRONG[words] in said and "Traceback" not in said


def test_a_process_ends_with_the_code_of_its_command(peft_harness):
    code, said = peft_harness("soak", "--times", "1")
    assert code == 2, said
    assert WRONG["soak", "--times", "1"] in said and "Traceback" not in said


# ---- pytest ----


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["pytest"], id="pytest"),
        pytest.param(["python", "-m", "pytest"], id="python-m-pytest", marks=pytest.mark.slow),
        pytest.param(
            ["python", "-m", "pytest", "-p", "harness.session.plugin"],
            id="with-the-plugin-named",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_pytest_runs_the_suites_by_their_name(installed, tmp_path, words):
    suites = ["--pyargs", "harness.suites.test_rng", "--clause", "RNG-01", "--subject", "hf-trainer", "-q"]
    done = installed.run(*words, *suites, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RNG-01" in done.stdout and "4 passed" in done.stdout


def test_other_sessions_of_pytest_are_left_alone(installed, tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "def test_mine(pytestconfig): assert not hasattr(pytestconfig.option, 'subject')"
    )
    done = installed.run("pytest", "-q", "test_mine.py", cwd=tmp_path)
    assert done.returncode == 0 and "judged:" not in done.stdout, done.stdout


# ---- minutes: run with -m slow ----


@pytest.mark.slow
def test_all_suites_are_collected_and_a_case_is_judged(installed, tmp_path):
    done = installed.run(
        "pytest", "--pyargs", "harness.suites", "--clause", "LOSS-01", "-k", "plain", "-n", "2", "-q", cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gate", "--baseline", "current", "--candidate", "current", "--clause", "FRZ-10"], "safe: what held"),
        (["mutants", "--mutant", "console-silent"], "1 killed"),
        (["speed", "--shape", "tiny", "--seconds", "1"], "what the device allows"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_command_of_minutes_runs_to_its_end(peft_harness, words, message):
    code, said = peft_harness(*words)
    assert code == 0, said
    assert message in said


@pytest.mark.slow
def test_bisect_judges_both_ends(peft_harness):
    code, said = peft_harness("bisect", "--clause", "FRZ-10", "--good", "current", "--bad", "current")
    assert code == 2 and "no case holds under --good and fails under --bad" in said, said
