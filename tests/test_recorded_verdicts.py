"""What a test of suites/ records with `judge`, and what becomes of it if the test does something else afterwards."""

import pytest

from tests.made_up_suite import HOLDS, defect, verdicts

pytest_plugins = ["pytester", "tests.made_up_suite"]

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
