"""A quick gate: the baseline is judged only in the tests that do not hold on the candidate."""

import sys

import pytest

from harness.errors import UsageError
from harness.gate import compare, show
from harness.gate.environments import Environment
from harness.gate.findings import BROKEN, LOST
from harness.gate.scope import Scope
from harness.gate.side import Side
from harness.verdict import Case

STACK = Environment("peft==0.18.1", sys.executable, {}, "", "key")


def case(name, verdict, clause="ACC-01"):
    return Case(clause, name, f"suites/x.py::test[{name}]", "hf-trainer", verdict=verdict)


@pytest.fixture
def gate(tmp_path, monkeypatch):
    """gate(baseline, candidate, quick): (outcome, what each side was asked, sides) if the suites say so of the sides."""

    def run(baseline, candidate, quick=True):
        asked = {}

        def suites(self, workers, report, tests=()):
            asked[self.name] = (workers, list(tests))
            cases = {"baseline": baseline, "candidate": candidate}[self.name]
            if isinstance(cases, Exception):
                raise cases
            return [case for case in cases if not tests or case.nodeid in tests]

        monkeypatch.setattr(Side, "ask", lambda *_, **__: {"error": None, "data": None})
        monkeypatch.setattr(Side, "suites", suites)
        judged = Scope(clauses=("*",))
        sides = [Side(name, STACK, tmp_path / name, judged) for name in ("baseline", "candidate")]
        return compare.gate(*sides, workers=1, report=lambda *_: None, quick=quick), asked, sides

    return run


BEFORE = [case("a", "pass"), case("b", "pass"), case("c", "pass"), case("d", "fail")]
AFTER = [case("a", "pass"), case("b", "fail"), case("c", "skipped"), case("d", "pass")]


def test_the_verdict_is_the_same_as_without_quick(gate):
    (whole, _, _), (quick, asked, sides) = gate(BEFORE, AFTER, quick=False), gate(BEFORE, AFTER)
    assert asked == {"candidate": (2, []), "baseline": (2, [AFTER[1].nodeid, AFTER[2].nodeid])}
    assert quick.verdict == whole.verdict == "unsafe"
    assert [finding for finding in whole.findings if finding.means in (BROKEN, LOST)] == quick.findings
    assert "fixes are not listed" in show.judged(sides, quick)
    assert "fixes" not in show.judged(sides, whole)


def test_if_all_holds_the_baseline_is_not_judged(gate):
    outcome, asked, _ = gate(BEFORE, [case(name, "pass") for name in "abcd"])
    assert list(asked) == ["candidate"]
    assert (outcome.verdict, outcome.findings) == ("safe", [])


def test_a_drawn_run_is_judged_whole_if_one_law_fails(gate):
    drawn = [case("drawn-0", "pass"), case("drawn-0", "fail", "RES-01")]
    outcome, asked, _ = gate([case("drawn-0", "pass"), case("drawn-0", "pass", "RES-01")], drawn)
    assert asked["baseline"][1] == [drawn[0].nodeid]
    assert [(finding.where, finding.means) for finding in outcome.findings] == [("RES-01", BROKEN)]


@pytest.mark.parametrize(("broken", "words"), [("baseline", "no baseline"), ("candidate", "no candidate")])
def test_a_side_that_cannot_be_judged_says_so(gate, broken, words):
    said = {"baseline": BEFORE, "candidate": AFTER} | {broken: UsageError(words)}
    with pytest.raises(UsageError, match=words):
        gate(**said)
