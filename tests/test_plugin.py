"""The pytest plugin: from a test's outcome to a clause's verdict, the register's own errors, and bad usage."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import jsonschema
import pytest

from harness import contract, paths
from harness.contract import expectations
from harness.contract.clause import Chapter, Clause
from harness.errors import UsageError
from harness.paths import PACKAGE, SUITES
from harness.session.journal import Journal

pytest_plugins = ["pytester"]

CONFTEST = 'pytest_plugins = ["harness.session.plugin"]'

HOLDS = """
import pytest
from harness.verdict import same, verdict, Verdict

@pytest.mark.clause("XYZ-01")
@pytest.mark.parametrize("number", [pytest.param(1, id="one"), pytest.param({second}, id="other")])
def test_one(judge, number):
    judge(same("the number", number, 1, number=number))

@pytest.mark.clause("XYZ-02")
def test_two():
    raise RuntimeError("never run")
"""


CHAPTER = Chapter(
    "XYZ",
    "made up",
    (
        Clause("XYZ-01", "One MUST be one.", "nowhere:1"),
        Clause("XYZ-02", "Two MUST be two.", "nowhere:2", needs=("no-such-package>=1",)),
    ),
)


@pytest.fixture
def suite(pytester, monkeypatch):
    """suite(code, *options): run a suite of one file under a made-up contract; (exit code, output, JSON report)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(code, *options, expectations=""):
        folder = pytester.mkdir("suites")
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "test_xyz.py").write_text(code)
        (folder / "expectations").mkdir()
        (folder / "expectations" / "xyz.toml").write_text(expectations)
        monkeypatch.setattr(paths, "SUITES", folder)
        monkeypatch.setattr(contract, "CHAPTERS", ("xyz",))
        monkeypatch.setitem(sys.modules, "harness.contract.xyz", SimpleNamespace(CHAPTER=CHAPTER))
        done = pytester.runpytest_inprocess("suites", "-p", "no:cacheprovider", "--json", "out.json", *options)
        out = pytester.path / "out.json"
        output = done.stdout.str() + done.stderr.str()
        return int(done.ret), output, json.loads(out.read_text()) if out.exists() else None

    return run


def defect(**fields):
    values = {
        "clause": "XYZ-01",
        "scenario": "other",
        "versions": ["torch>=1"],
        "match": "2",
        "reason": "known",
        **fields,
    }
    return "[[defect]]\n" + "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def verdicts(report):
    return {
        (clause["id"], case["scenario"]): case["verdict"] for clause in report["clauses"] for case in clause["cases"]
    }


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


FLAKY = """
import pytest
from hypothesis import given, settings, strategies
from harness.spec import RunSpec
from harness.verdict import verdict

seen = []

@pytest.mark.clause("XYZ-01")
def test_one(draw):
    @settings(database=None)
    @given(strategies.integers())
    def always(number):
        seen.append(number)
        found = verdict("the number is right", ["it is not"] if len(seen) == 1 else [])
        draw.record("XYZ-01", RunSpec(), lambda: found)

    always()

@pytest.mark.clause("XYZ-02")
def test_two():
    raise RuntimeError("never run")
"""


def test_a_drawn_failure_that_does_not_come_again_says_what_it_was(suite, imported):
    code, output, report = suite(FLAKY)
    (case,) = report["clauses"][0]["cases"]
    assert code == 1 and case["verdict"] == "fail", output
    assert case["evidence"]["expected"] == "the number is right"
    assert case["evidence"]["seen"] == ["it is not", "this was seen once, and not when the same run was made again"]


# ---- what a test records ----

#: A suite whose one judging test has this body.
RECORDS = """
import pytest
from harness.verdict import AMBIGUOUS, Verdict, verdict

@pytest.mark.clause("XYZ-01")
def test_other(judge):
    {body}

@pytest.mark.clause("XYZ-02")
def test_two():
    raise RuntimeError("never run")
"""

FIRST = 'judge(verdict("the first", ["2 is wrong"], first=1))'
SECOND = 'judge(verdict("the second", ["3 is wrong"], second=2))'


def recorded(suite, *statements, **options):
    code, output, report = suite(RECORDS.format(body="; ".join(statements)), **options)
    (case,) = report["clauses"][0]["cases"]
    return code, output, case


def test_two_verdicts_of_one_test_must_both_hold(suite):
    code, _, case = recorded(suite, 'judge(verdict("it holds", []))', SECOND)
    assert (code, case["verdict"]) == (1, "fail")
    assert case["evidence"] == {"second": 2, "expected": "the second", "seen": ["3 is wrong"]}


def test_two_failures_of_one_test_are_told_in_order(suite):
    _, _, case = recorded(suite, FIRST, SECOND)
    assert case["evidence"]["expected"] == "the first; the second"
    assert case["evidence"]["seen"] == ["2 is wrong", "3 is wrong"]


def test_a_failure_outweighs_an_undecided_verdict(suite):
    code, _, case = recorded(suite, 'judge(Verdict(AMBIGUOUS, "decided", ("too noisy",)))', SECOND)
    assert (code, case["verdict"]) == (1, "fail")


def test_a_crash_after_a_failure_comes_second(suite):
    code, output, case = recorded(suite, FIRST, "1 / 0")
    assert (code, case["verdict"]) == (1, "fail")
    assert case["evidence"]["seen"] == ["2 is wrong", "ZeroDivisionError: division by zero"]
    assert "test_xyz.py:7: ZeroDivisionError" in output


def test_a_skip_does_not_undo_a_failure(suite):
    code, _, case = recorded(suite, FIRST, 'pytest.skip("no more")')
    assert (code, case["verdict"]) == (1, "fail")
    assert case["evidence"]["seen"] == ["2 is wrong", "Skipped: no more"]


@pytest.mark.parametrize("then", [SECOND, "1 / 0", 'pytest.skip("no more")'])
def test_a_known_defect_excuses_nothing_that_comes_after_it(suite, then):
    code, _, case = recorded(suite, FIRST, then, expectations=defect(match="2 is wrong"))
    assert (code, case["verdict"]) == (1, "fail")


def test_a_test_that_records_no_verdict_fails(suite):
    code, _, case = recorded(suite, "pass")
    assert (code, case["verdict"]) == (1, "fail")
    assert case["evidence"]["seen"] == ["the test ended without a verdict"]


def test_recorded_failures_count_for_maxfail(suite):
    code = HOLDS.format(second=2).replace('param(1, id="one")', 'param(2, id="one")')
    status, output, report = suite(code, "--maxfail", "1")
    assert status == 1 and "stopping after 1 failures" in output
    assert list(verdicts(report)) == [("XYZ-01", "one")]


# ---- what is printed ----

TEN = """
import pytest
from harness.verdict import verdict

@pytest.mark.clause("XYZ-01")
@pytest.mark.parametrize("number", range(10))
def test_a_name_that_takes_most_of_the_eighty_columns_which_a_terminal_has(judge, number):
    judge(verdict("the number is right", [f"step {number}: it is not the number that was expected at this step", "more"]))

@pytest.mark.clause("XYZ-02")
def test_two():
    raise RuntimeError("never run")
"""


@pytest.mark.parametrize("options", [(), ("-p", "made_up", "-n", "2")], ids=["one-process", "two-workers"])
def test_failures_of_one_clause_state_it_once_and_have_their_first_finding_in_the_summary(suite, pytester, options):
    suite(TEN)
    pytester.makepyfile(made_up=MADE_UP)
    command = [sys.executable, "-m", "pytest", "suites", "-p", "no:cacheprovider", "-p", "made_up", *options]
    path = os.pathsep.join([str(SUITES.parent), str(pytester.path)])
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("clause    One MUST be one.") == done.stdout.count("upstream  nowhere:1") == 1
    for number in range(10):
        assert f"XYZ-01 does not hold: scenario {number}, subject hf-trainer, cpu" in done.stdout
        finding = f"XYZ-01: step {number}: it is not the number that was expected at this step"
        assert f"which_a_terminal_has[{number}] - {finding}\n" in done.stdout
    assert done.stdout.count("\nFAILED ") == 10
    assert "\x1b" not in done.stdout


def test_junit_has_the_finding_and_the_case_as_json(suite, pytester):
    suite(TEN, "--junit-xml", "junit.xml")
    tests = ElementTree.parse(pytester.path / "junit.xml").findall(".//testcase")
    finding = "XYZ-01: step 3: it is not the number that was expected at this step"
    assert [test.find("failure").get("message") for test in tests[3:4]] == [finding]
    case = json.loads(tests[3].find(".//property[@name='peft_harness_case']").get("value"))
    assert (case["clause"], case["scenario"], case["verdict"]) == ("XYZ-01", "3", "fail")
    assert all("One MUST be one." in test.find("failure").text for test in tests[:10])


def test_a_run_in_a_pipe_prints_how_far_it_is(suite, monkeypatch):
    monkeypatch.setattr("harness.progress.INTERVAL", 0.0)
    _, output, _ = suite(HOLDS.format(second=2))
    assert "2 of 3 tests, 1 failed (0 s)" in output.splitlines()


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


MADE_UP = """
import sys
from pathlib import Path
from types import SimpleNamespace

from harness import contract, paths
from tests.test_plugin import CHAPTER

paths.SUITES = Path(__file__).with_name("suites")
contract.CHAPTERS = ("xyz",)
sys.modules["harness.contract.xyz"] = SimpleNamespace(CHAPTER=CHAPTER)
"""


def test_workers_tell_what_is_wrong_with_the_suites(suite, pytester):
    suite(HOLDS.format(second=1), expectations=defect(scenario="nowhere"))
    pytester.makepyfile(made_up=MADE_UP)
    command = [sys.executable, "-m", "pytest", "suites", "-p", "made_up", "-n", "2", "-q"]
    path = os.pathsep.join([str(SUITES.parent), str(pytester.path)])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
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


def test_workers_choose_their_gpu_before_they_use_one(suite, pytester):
    suite(SEES)
    pytester.makepyfile(made_up=MADE_UP, two_gpus=TWO_GPUS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "suites",
        "-p",
        "made_up",
        "-p",
        "two_gpus",
        "--device",
        "cuda",
        "-n",
        "2",
    ]
    path = os.pathsep.join([str(SUITES.parent), str(pytester.path)])
    without = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(command, capture_output=True, text=True, env=without | {"PYTHONPATH": path})
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
