"""The pytest plugin: from a test's outcome to a clause's verdict, the register's own errors, and bad usage."""

import functools
import json
import os
import subprocess
import sys

import jsonschema
import pytest

from harness.contract import expectations
from harness.errors import UsageError
from harness.paths import PACKAGE, ROOT, SUITES
from harness.session.journal import Journal
from tests.made_up_suite import HOLDS, defect, in_new_process, verdicts

pytest_plugins = ["pytester", "tests.made_up_suite"]


def test_clauses_that_hold_and_clauses_that_do_not_apply(suite):
    code, output, report = suite(HOLDS.format(second=1))
    assert code == 0, output
    jsonschema.validate(report, json.loads((PACKAGE / "session" / "report_schema.json").read_text()))
    assert verdicts(report) == {
        ("XYZ-01", "one"): "pass",
        ("XYZ-01", "other"): "pass",
        ("XYZ-02", "two"): "skipped",
    }
    assert report["clauses"][0]["cases"][0]["evidence"] == {"number": 1}
    assert "skipped 1 case: needs no-such-package>=1" in output


def test_a_clause_that_fails_says_what_was_expected_seen_and_how_to_repeat_it(suite, pytester):
    code, output, report = suite(HOLDS.format(second=2))
    assert code == 1
    assert verdicts(report)[("XYZ-01", "other")] == "fail"
    assert report["clauses"][0]["verdict"] == "fail"
    assert report["clauses"][0]["cases"][1]["evidence"] == {"number": 2, "expected": "the number: 1", "seen": ["2"]}
    for words in ("XYZ-01 does not hold", "clause    One MUST be one.", "expected  the number: 1", "seen      2"):
        assert words in output
    assert "Traceback" not in output
    case = json.loads((pytester.path / ".peft-harness/cases/XYZ-01-other.json").read_text())
    assert case["test"] == "test_xyz.py::test_one[other]"
    assert "peft-harness repro .peft-harness/cases/XYZ-01-other.json" in output


def test_the_summary_answers_first_and_then_says_the_causes(suite):
    """Three tests fail by two causes: a fixture that raises, an error of upstream in a run, and what follows from it."""
    code, output, report = suite(BROKEN, expectations="")
    assert code == 1
    jsonschema.validate(report, json.loads((PACKAGE / "session" / "report_schema.json").read_text()))
    lines = output.splitlines()
    at = lines.index("fails: 3 of 5 cases for 2 causes; 1 case of 2 clauses holds")
    words = "inject_adapter of peft (peft/tuners/tuners_utils.py) raises"
    assert lines[at + 1].startswith(f"1. {words}") and "no_such_module" in lines[at + 1]
    assert lines[at + 2] == "   2 cases of 1 clause (XYZ-01); to blame: peft"
    assert any(line.startswith("2. RuntimeError: the fixture is broken") for line in lines)
    assert "   $ peft-harness check --clause XYZ-01" in lines
    assert any(line.startswith("   $ peft-harness repro .peft-harness/cases/XYZ-01-") for line in lines)
    failed = [line for line in lines if line.startswith("FAILED") and "test_its_files" in line]
    assert "(a run of it ended with " in failed[0] and "no_such_module" in failed[0]
    first, second = report["causes"]
    assert (first["cases"], second["cases"]) == (2, 1)
    cases = {case["scenario"]: case for case in report["clauses"][0]["cases"]}
    assert {name: case.get("cause") for name, case in cases.items()} == {
        "holds": None, "run": 0, "its_files": 0, "needs_the_fixture": 1,
    }  # fmt: skip
    assert cases["run"]["raised"][0]["run"] == 0
    assert cases["run"]["repeat"] == "peft-harness repro .peft-harness/cases/XYZ-01-run.json"


BROKEN = """
import pytest
from harness.laws.several import completes
from harness.spec import RunSpec
from harness.verdict import same

SPEC = RunSpec().but(lora={"target_modules": ["no_such_module"]}, max_steps=1)

@pytest.fixture
def broken():
    raise RuntimeError("the fixture is broken")

@pytest.mark.clause("XYZ-01")
def test_holds(judge):
    judge(same("one", 1, 1))

@pytest.mark.clause("XYZ-01")
def test_run(train, judge):
    judge(completes(train(SPEC)))

@pytest.mark.clause("XYZ-01")
def test_its_files(train, judge):
    judge(same("files", [one.step for one in train(SPEC).checkpoints], [2]))

@pytest.mark.clause("XYZ-01")
def test_needs_the_fixture(broken, judge):
    judge(same("one", 1, 1))

@pytest.mark.clause("XYZ-02")
def test_two():
    pass
"""


def test_errors_that_belong_to_no_case_are_said_once_for_each_reason(suite, pytester):
    code = """
import pytest
from harness.verdict import same

@pytest.fixture
def fragile():
    yield
    raise OSError("the disk is gone")

@pytest.mark.clause("XYZ-01")
@pytest.mark.parametrize("number", [1, 2])
def test_one(fragile, judge, number):
    judge(same("it", 1, 1))

@pytest.mark.clause("XYZ-02")
def test_two():
    pass
"""
    status, output, _ = suite(code)
    assert status == 2
    assert "ERROR: suites/test_xyz.py::test_one[1] and 1 more: OSError: the disk is gone" in output.splitlines()


def test_many_known_defects_are_one_line_without_v(suite):
    numbers = range(5)
    code = (
        "import pytest\nfrom harness.verdict import same\n@pytest.mark.clause('XYZ-01')\n"
        "@pytest.mark.parametrize('number', range(5))\ndef test_one(judge, number):\n    judge(same('it', number, 7))\n"
        "@pytest.mark.clause('XYZ-02')\ndef test_two():\n    pass\n"
    )
    known = "\n".join(defect(scenario=str(number), match=str(number), reason=f"why {number}") for number in numbers)
    _, output, _ = suite(code, expectations=known)
    assert "5 known defects of upstream in 5 cases of 1 clause: `peft-harness defects` and -v list them" in output
    assert "known defect XYZ-01" not in output


def test_a_known_defect_is_no_failure_and_is_listed_with_its_link(suite):
    code, output, report = suite(HOLDS.format(second=2), expectations=defect(link="https://example.org/1"))
    assert code == 0, output
    assert verdicts(report)[("XYZ-01", "other")] == "known_defect"
    assert "known defect XYZ-01: known https://example.org/1" in output


def test_a_known_defect_that_fails_with_other_words_is_a_failure(suite):
    code, _, report = suite(HOLDS.format(second=2), expectations=defect(match="another fault"))
    assert code == 1
    assert verdicts(report)[("XYZ-01", "other")] == "fail"


def test_a_known_defect_that_holds_is_an_unexpected_pass(suite):
    code, output, report = suite(HOLDS.format(second=1), expectations=defect())
    assert code == 1
    assert verdicts(report)[("XYZ-01", "other")] == "unexpected_pass"
    assert "narrow its versions" in output


def test_a_defect_of_other_versions_excuses_nothing(suite):
    code, _, report = suite(HOLDS.format(second=2), expectations=defect(versions=["torch<1"]))
    assert code == 1
    assert verdicts(report)[("XYZ-01", "other")] == "fail"


def test_a_crash_in_a_test_is_a_failure_with_its_traceback(suite):
    code, output, report = suite(HOLDS.format(second="'x' * 3").replace("judge(same", "1 / 0; judge(same"))
    assert code == 1
    assert set(verdicts(report).values()) == {"fail", "skipped"}
    assert "ZeroDivisionError" in output


def test_what_is_undecided_ends_with_3(suite):
    undecided = 'Verdict("ambiguous", "the number", ("too noisy",))'
    code, _, report = suite(HOLDS.format(second=1).replace('same("the number", number, 1, number=number)', undecided))
    assert code == 3
    assert verdicts(report)[("XYZ-01", "one")] == "ambiguous"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            HOLDS.format(second=1).replace("XYZ-02", "XYZ-09"),
            "names clause 'XYZ-09', which harness/contract/ does not have",
        ),
        (HOLDS.format(second=1).replace('@pytest.mark.clause("XYZ-02")', ""), "test_two names 0 clauses"),
        (HOLDS.format(second=1).split('@pytest.mark.clause("XYZ-02")')[0], "clause XYZ-02 has no test in suites/"),
    ],
)
def test_register_and_suite_must_agree(suite, code, words):
    status, output, _ = suite(code)
    assert status == 4
    assert words in output


# The second is what pyproject.toml has pytest add in a checkout.
@pytest.mark.parametrize("options", [(), ("-m", "not network and not slow")], ids=["plain", "in-a-checkout"])
def test_an_expectation_that_names_no_case_is_an_error(suite, options):
    code, output, _ = suite(HOLDS.format(second=1), *options, expectations=defect(scenario="nowhere"))
    assert code == 4
    assert "XYZ-01 'nowhere' names no case" in output


ALWAYS = defect(scenario="one")
SOMETIMES = defect(match="the number", sometimes="XYZ-01")


@pytest.mark.parametrize(("second", "verdict"), [(1, "pass"), (2, "known_defect")])
def test_what_fails_now_and_then_may_hold(suite, second, verdict):
    code = HOLDS.format(second=second).replace('param(1, id="one")', 'param(2, id="one")')
    status, output, report = suite(code, expectations=f"{ALWAYS}\n{SOMETIMES}")
    assert status == 0, output
    assert verdicts(report)[("XYZ-01", "other")] == verdict


def test_what_fails_now_and_then_always_breaks_a_clause(tmp_path):
    (tmp_path / "xyz.toml").write_text(SOMETIMES)
    with pytest.raises(UsageError, match="always breaks XYZ-01, but there is no expectation of that on cpu, cuda"):
        expectations.load(tmp_path)


@pytest.mark.parametrize("options", [("--ignore", "suites/test_two.py"), ("--ignore-glob", "*two*")])
def test_where_files_are_left_out_cases_may_be_missing(suite, options):
    code, output, _ = suite(HOLDS.format(second=1), *options, expectations=defect(scenario="nowhere"))
    assert code == 0 and "names no case" not in output


def test_workers_tell_what_is_wrong_with_the_suites(suite, pytester):
    suite(HOLDS.format(second=1), expectations=defect(scenario="nowhere"))
    done = in_new_process(pytester, "-n", "2", "-q")
    assert done.returncode == 4, done.stdout + done.stderr
    assert "ERROR: suites/expectations/xyz.toml: XYZ-01 'nowhere' names no case" in done.stdout
    assert "INTERNALERROR" not in done.stdout


TWO_GPUS = """
import torch

def name():
    torch.cuda.is_initialized = lambda: True
    return "made up"

torch.cuda.device_count, torch.cuda.is_available, torch.cuda.get_device_name = lambda: 2, lambda: True, name
"""

SEES = """
import os
from pathlib import Path
import pytest
from harness.verdict import same

@pytest.mark.clause("XYZ-01")
@pytest.mark.parametrize("number", [pytest.param(0, id="one"), pytest.param(1, id="other")])
def test_one(judge, number):
    import torch
    seen = os.environ["CUDA_VISIBLE_DEVICES"]
    Path(f"seen-{number}").write_text(seen)
    judge(same("CUDA was started", torch.cuda.is_initialized(), True))

@pytest.mark.clause("XYZ-02")
def test_two():
    raise RuntimeError("never run")
"""


@pytest.mark.slow
def test_workers_choose_their_gpu_before_they_use_one(suite, pytester, monkeypatch):
    suite(SEES)
    pytester.makepyfile(two_gpus=TWO_GPUS)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    # A worker that is a fork of the controller has started CUDA.
    new = functools.partial(subprocess.run, capture_output=True, text=True)
    done = in_new_process(pytester, "-p", "two_gpus", "--device", "cuda", "-n", "2", run=new)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted((pytester.path / f"seen-{number}").read_text() for number in (0, 1)) == ["0", "1"]


def test_an_entry_may_list_several_clauses_and_scenarios(tmp_path):
    (tmp_path / "xyz.toml").write_text(defect(clause=["XYZ-01", "XYZ-02"], scenario=["one", "other"]))
    named = [(one.clause, one.scenario) for one in expectations.load(tmp_path)]
    assert named == [("XYZ-01", "one"), ("XYZ-01", "other"), ("XYZ-02", "one"), ("XYZ-02", "other")]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (defect(reason=""), "xyz.toml, defect 1: missing reason"),
        (defect(surprise="?"), "xyz.toml, defect 1: unknown field surprise"),
        ("[[defect", "not TOML"),
    ],
)
def test_a_wrong_expectation_is_one_sentence(tmp_path, entry, words):
    (tmp_path / "xyz.toml").write_text(entry)
    with pytest.raises(UsageError, match=words):
        expectations.load(tmp_path)


def test_clause_option_judges_those_clauses_only(suite):
    code, _, report = suite(HOLDS.format(second=1), "--clause", "*-01")
    assert code == 0
    assert [clause["id"] for clause in report["clauses"]] == ["XYZ-01"]


def test_a_named_clause_that_is_not_judged_ends_with_3_and_is_named(suite):
    code, output, _ = suite(HOLDS.format(second=1), "--clause", "XYZ-*")
    assert code == 3
    assert "not judged: 1 clause: XYZ-02 (needs no-such-package>=1)" in output
    assert "undecided: no case was judged of XYZ-02, which this run was asked for" in output


# ---- the journal ----


def again(pytester, *options):
    done = pytester.runpytest_inprocess("suites", "-p", "no:cacheprovider", "--json", "out.json", *options)
    return int(done.ret), done.stdout.str() + done.stderr.str(), json.loads((pytester.path / "out.json").read_text())


def test_a_run_goes_on_where_its_journal_ends(suite, pytester):
    code, _, whole = suite(HOLDS.format(second=2), "--journal", "run.jsonl")
    journal = pytester.path / "run.jsonl"
    lines = journal.read_text().splitlines()
    assert code == 1 and len(lines) == 1 + 3
    # Killed after its first case, in the middle of writing the second.
    journal.write_text("\n".join(lines[:2]) + "\n" + lines[2][:40])
    code, output, report = again(pytester, "--journal", "run.jsonl")
    assert code == 1 and "1 failed, 1 skipped" in output
    assert verdicts(report) == verdicts(whole)
    code, output, report = again(pytester, "--journal", "run.jsonl")
    assert code == 1 and "3 deselected" in output
    assert verdicts(report) == verdicts(whole)


def test_a_whole_journal_of_what_holds_ends_well(suite, pytester):
    suite(HOLDS.format(second=1), "--journal", "run.jsonl")
    assert again(pytester, "--journal", "run.jsonl")[0] == 0


def test_the_journal_of_another_run_is_left_alone(suite, pytester):
    suite(HOLDS.format(second=1), "--journal", "run.jsonl")
    kept = (pytester.path / "run.jsonl").read_text()
    with pytest.raises(UsageError, match="has cases of another run"):
        Journal.open(str(pytester.path / "run.jsonl"), ["another run"], writes=True)
    assert (pytester.path / "run.jsonl").read_text() == kept


KILLER = """
import os, pathlib
import transformers

train, marker = transformers.Trainer.train, pathlib.Path(__file__).with_name("killed")

def kill(*args, **options):
    if not marker.exists():
        marker.touch()
        os._exit(9)
    return train(*args, **options)

transformers.Trainer.train = kill
"""


@pytest.mark.slow
def test_a_case_that_kills_its_worker_is_a_failed_case(tmp_path, monkeypatch):
    (tmp_path / "killer.py").write_text(KILLER)
    command = [sys.executable, "-m", "pytest", str(SUITES), "--clause", "RNG-01", "--preload", "killer", "-n", "1"]
    command += ["-q", "-p", "no:cacheprovider", "--json", "out.json"]
    path = os.pathsep.join([str(SUITES.parent), str(tmp_path)])
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 1, done.stdout
    (clause,) = json.loads((tmp_path / "out.json").read_text())["clauses"]
    failed = [case for case in clause["cases"] if case["verdict"] == "fail"]
    assert len(failed) == 1 and len(clause["cases"]) > 1
    assert "crashed" in failed[0]["evidence"]["seen"][0]
    assert {case["verdict"] for case in clause["cases"]} == {"fail", "pass"}


def test_no_collected_file_imports_upstream_before_its_environment_is_set():
    """huggingface_hub reads HF_HUB_OFFLINE when it is imported, and test files of the suites import peft."""
    code = """
import pytest
pytest.main(["suites/test_api.py", "--clause", "API-01", "-q", "-n", "0", "-p", "no:cacheprovider", "--co"])
import huggingface_hub.constants
print("offline", huggingface_hub.constants.HF_HUB_OFFLINE)
"""
    variables = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=variables)
    assert done.stdout.splitlines()[-1] == "offline True", done.stdout + done.stderr
