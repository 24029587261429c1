"""A session ends with 0 only if each test that it was asked for was judged, whatever user code does to its process."""

import json

import pytest

from harness.contract import expectations
from harness.errors import UsageError
from harness.session.complete import Complete, exit_code, facts
from harness.session.journal import Journal, read, text, total, unfinished
from harness.verdict import FAIL, SKIPPED, Case
from tests.made_up_suite import HOLDS, defect, in_new_process, verdicts

pytest_plugins = ["pytester", "tests.made_up_suite"]

ONE = HOLDS.format(second=1)


def judged(verdict="pass", **fields):
    return Case("XYZ-01", "one", "suites/test_xyz.py::test_one[one]", "hf-trainer", verdict=verdict, **fields)


@pytest.mark.parametrize(
    ("asked", "cases", "status", "code"),
    [
        (["a"], [judged()], 0, 0),
        (["a", "b"], [judged()], 0, 2),  # pytest.exit(returncode=0) in the middle
        (["a", "b"], [judged(FAIL)], 1, 1),  # -x
        (["a"], [], 0, 2),
        ([], [], 5, 5),
        (["a"], [judged()], 2, 2),  # Ctrl-C
        (["a"], [judged()], 1, 2),  # an error that belongs to no case
        (["a"], [judged(), judged(SKIPPED, misused=True)], 1, 2),
        (["a"], [judged(FAIL), judged(SKIPPED, misused=True)], 1, 1),
    ],
)
def test_the_exit_code_follows_from_what_was_judged(monkeypatch, asked, cases, status, code):
    monkeypatch.setattr(
        "harness.session.report.exit_code", lambda cases, named: int(any(c.verdict == FAIL for c in cases))
    )
    complete = Complete(set())
    complete.pytest_xdist_node_collection_finished(asked)
    for nodeid in asked[: len(cases) and 1]:
        complete.judged(nodeid)
    assert exit_code(complete, cases, False, status) == code
    assert facts(complete, status)["complete"] == (not complete.missing and status != 2)


def test_what_was_not_judged_is_counted_and_named(suite):
    exits = ONE.replace("judge(same", 'pytest.exit("bye", returncode=0); judge(same')
    code, output, report = suite(exits)
    assert code == 2
    assert "ERROR: not judged: 3 of 3 tests that this run was asked for: test_xyz.py::test_one[one], " in output
    assert (report["complete"], report["not_judged"]) == (False, 3)


@pytest.mark.parametrize("options", [("--collect-only",), ("-k", "nothing_like_this")])
def test_a_session_that_judges_nothing_is_no_success(suite, options):
    code, output, report = suite(ONE, *options)
    assert code == 5 and report["clauses"] == []
    assert "nothing was judged: " in output


def test_setups_alone_judge_nothing(suite):
    assert suite(ONE, "--setup-only")[0] == 2


def test_a_failure_of_pytest_itself_is_not_undecided(suite, pytester):
    broken = 'def pytest_runtest_logfinish(): raise ValueError("broken")\n'
    pytester.makepyfile(broken=broken)
    pytester.syspathinsert()
    code, output, _ = suite(ONE, "-p", "broken")
    assert code == 2 and "ValueError: broken" in output


def test_an_error_in_a_teardown_is_no_failed_clause(suite):
    fixture = "\n@pytest.fixture(autouse=True)\ndef after():\n    yield\n    1 / 0\n"
    code, _, report = suite(ONE + fixture)
    assert code == 2 and verdicts(report)[("XYZ-01", "one")] == "pass"


# ---- a process that judges in a child ----

ENDS = """
import os, time
import pytest
from harness.verdict import same

@pytest.mark.clause("XYZ-01")
@pytest.mark.parametrize("what", ["holds", "exits", "hangs", "later"])
def test_one(judge, what):
    if what == "exits":
        os._exit(0)
    if what == "hangs":
        import collections, itertools
        collections.deque(itertools.count(), maxlen=0)  # in C, where no signal is looked at
    judge(same("the number", 1, 1))

@pytest.mark.clause("XYZ-02")
def test_two():
    raise RuntimeError("never run")
"""


def test_a_test_that_ends_or_hangs_its_process_fails_and_the_others_are_judged(suite, pytester):
    suite(ENDS, "--collect-only")
    options = ["--json", "ended.json", "--junitxml", "ended.xml", "--case-limit", "3", "--journal", "ended.jsonl"]
    done = in_new_process(pytester, *options)
    report = json.loads((pytester.path / "ended.json").read_text())
    assert done.returncode == 1, done.stdout + done.stderr
    assert verdicts(report) == {
        ("XYZ-01", "holds"): "pass",
        ("XYZ-01", "exits"): "fail",
        ("XYZ-01", "hangs"): "fail",
        ("XYZ-01", "later"): "pass",
        ("XYZ-02", "two"): "skipped",
    }
    assert report["complete"] and len(read(pytester.path / "ended.jsonl")[1]) == 5
    assert 'tests="5"' in (pytester.path / "ended.xml").read_text()
    assert "test_one[exits] ended with exit status 0" in done.stdout
    assert "test_one[hangs] had not ended after 3 s (--case-limit)" in done.stdout
    assert 'test_xyz.py", line 13 in test_one' in done.stdout


def test_a_subject_that_ends_the_process_at_its_import_is_never_0(suite, pytester):
    suite(ONE, "--collect-only")
    pytester.makepyfile(ends="import posix\nposix._exit(0)\n")
    done = in_new_process(pytester, "--subject", "ends:subject")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "ended with exit status 0 while it loaded --subject ends:subject" in done.stderr


# ---- journals and expectations that cannot be believed ----

CASES = [judged(), judged("skipped", reason="needs more")]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda good: "my own notes\n", "no journal"),
        (lambda good: good.replace('"skipped"', '"pass"'), "was changed after it was written"),
        (lambda good: good.replace('"schema_version": 1', '"schema_version": 2'), "this release reads 1"),
        (lambda good: good.replace("\n", "\n{\n", 1), "no journal, or damaged"),
        (lambda good: good.replace('"clause"', '"klause"'), "no case of this release"),
        (lambda good: "\x00\xff\n" + good, "no journal, or damaged"),
        (lambda good: "[" * 10**5 + "\n", "no journal, or damaged"),
    ],
    ids=["notes", "edited", "newer", "cut-in-the-middle", "other-fields", "binary", "deep"],
)
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(tmp_path, damage, words):
    file = tmp_path / "run.jsonl"
    file.write_bytes(damage(text(["run"], CASES)).encode("latin-1"))
    before = file.read_bytes()
    with pytest.raises(UsageError) as error:
        Journal.open(str(file), ["run"], writes=True)
    assert words in str(error.value) and str(file) in str(error.value)
    assert file.read_bytes() == before


def test_a_journal_goes_on_where_its_last_line_was_cut_off(tmp_path):
    file = tmp_path / "run.jsonl"
    file.write_text(text(["run"], CASES)[:-20])
    assert Journal.open(str(file), ["run"], writes=True).cases == tuple(CASES[:1])
    assert file.read_text() == text(["run"], CASES[:1])


@pytest.mark.parametrize("workers", ["0", "2"])
def test_what_pytest_deselects_is_not_waited_for(suite, pytester, workers):
    """`gate` judges what a journal has collected and not ended again. It ended with an error: slow cases are left out."""
    run = "journal-without-two.jsonl"
    suite(ONE, "--collect-only")
    in_new_process(pytester, "--journal", run, "-n", workers, "-k", "one")
    file = pytester.path / run
    assert unfinished(file) == set()
    assert total(file) == len(read(file)[1]) == 2


def test_a_journal_that_cannot_be_written_any_more_is_said(suite, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.session.journal._line", full)
    code, output, report = suite(ONE, "--journal", "run.jsonl")
    assert code == 2 and "cannot be written any more (no space left on device)" in output
    assert verdicts(report)[("XYZ-01", "one")] == "pass"


def test_a_disk_that_is_full_before_the_first_case_is_said_in_one_sentence(suite, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device", "/there/x")

    monkeypatch.setattr("harness.session.journal.write_whole", full)
    code, output, _ = suite(ONE)
    assert code in (2, 4) and "INTERNALERROR" not in output  # pytester does not turn 4 into 2
    assert output.count("no space left on /there; free some") == 1


def test_a_failure_is_judged_where_no_case_file_can_be_written(suite, pytester):
    (pytester.path / ".peft-harness").write_text("in the way")
    code, output, report = suite(HOLDS.format(second=2))
    assert code == 1 and "no case file could be written in .peft-harness (" in output
    assert verdicts(report)[("XYZ-01", "other")] == "fail"


@pytest.mark.parametrize("option", ["--json", "--junitxml", "--journal"])
def test_a_file_that_cannot_be_written_is_found_before_the_work(suite, option):
    # pytester itself has another exit code for a session that ends before it begins; tests/test_usage.py looks at that.
    _, output, _ = suite(ONE, option, "/proc/none/x")
    assert f"peft-harness: {option} /proc/none/x: cannot be written" in output
    assert "test session starts" not in output


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (defect(match=" "), "match and reason must have words"),
        (defect(versions="torch>=1"), "versions is 'torch>=1'; expected a list of texts"),
        (defect(versions=["torch ~ 1"]), "'torch ~ 1' is no requirement"),
        (defect(devices=["tpu"]), "'tpu' is neither cpu nor cuda"),
        (defect(clause=3), "clause is 3; expected a text or a list of texts"),
        (defect(reason=["a"]), "reason is ['a']; expected a text"),
        (defect(spec=3), "spec is 3; expected a table"),
        ("[defect]\na = 1", "expected tables [[defect]] only"),
        ("[[defects]]\na = 1", "unknown 'defects'"),
        ("\x00", "not TOML"),
        ("a = " + "[" * 5000, "not TOML"),
    ],
)
def test_a_wrong_expectation_names_file_and_field(tmp_path, entry, words):
    (tmp_path / "xyz.toml").write_text(entry)
    with pytest.raises(UsageError) as error:
        expectations.load(tmp_path)
    assert words in str(error.value) and "xyz.toml" in str(error.value)


def test_an_expectation_of_an_unknown_clause_ends_the_session(suite):
    _, output, _ = suite(ONE, "-k", "one", expectations=defect(clause="XYZ-77"))
    assert "peft-harness: suites/expectations/xyz.toml: clause: 'XYZ-77' is unknown" in output
