"""The search for the release that broke a clause, on made-up releases."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.gate import bisect, history, index
from harness.gate.probe import BREAKS, HOLDS, UNTESTABLE, Prober, StackResult, targets
from harness.gate.scope import Scope
from harness.processes import engine
from harness.verdict import Case

RELEASES = {"a": [f"1.{n}" for n in range(41)], "b": [f"2.{n}" for n in range(6)]}


def releases(package, first, last):
    versions = RELEASES[package]
    return versions[versions.index(first) : versions.index(last) + 1]


def found(breaks, untestable=lambda stack: False):
    """(answer, number of judged stacks) for a clause that breaks if breaks(a, b) says so of the minor versions."""
    asked = []

    def ask(stacks):
        asked.extend(stacks)
        minor = [{name: int(version.split(".")[1]) for name, version in stack.items()} for stack in stacks]
        return [UNTESTABLE if untestable(m) else BREAKS if breaks(m["a"], m["b"]) else HOLDS for m in minor]

    good, bad = {"a": "1.0", "b": "2.0"}, {"a": "1.40", "b": "2.5"}
    return bisect.search("ACC-01", good, bad, releases, ask), len(asked)


@pytest.mark.parametrize("first", [1, 2, 13, 20, 39, 40])
def test_the_first_release_of_the_one_package_is_found_with_few_probes(first):
    answer, asked = found(lambda a, b: a >= first)
    assert str(answer) == f"ACC-01 broke in a 1.{first} (1.{first - 1} holds)"
    assert answer.exact and asked <= 10


@pytest.mark.parametrize(("at_once", "rounds"), [(1, 6), (2, 4), (7, 2), (40, 1)])
def test_with_k_places_each_round_leaves_one_part_of_k_plus_1(at_once, rounds):
    asked = []

    def ask(stacks):
        asked.append(len(stacks))
        return [BREAKS if int(stack["a"].split(".")[1]) >= 29 else HOLDS for stack in stacks]

    answer = bisect.search("ACC-01", {"a": "1.0"}, {"a": "1.40"}, releases, ask, at_once)
    assert str(answer) == "ACC-01 broke in a 1.29 (1.28 holds)"
    assert len(asked) <= rounds and max(asked) <= at_once


def test_stacks_are_judged_by_an_engine(monkeypatch):
    monkeypatch.setattr(Prober, "_ask", lambda self, stack: StackResult(stack, reason=f"{self.tests[0]} {stack}"))
    said = []
    with ThreadPoolExecutor(1) as pool:
        at = engine.Engine(pool, 5, Path("lease"), "me", "")
        prober = Prober(Scope(), ("test",), lambda stack, doing: said.append(stack), at)
        assert [one.reason for one in prober.ask(["a", "b"])] == ["test a", "test b"]
        assert prober.width == 5 and said == ["a", "b"]


def test_the_package_that_broke_it_is_named():
    answer, _ = found(lambda a, b: b >= 3)
    assert str(answer) == "ACC-01 broke in b 2.3 (2.2 holds)"


def test_two_packages_that_must_change_together_are_both_named():
    answer, _ = found(lambda a, b: a >= 7 and b >= 2)
    assert str(answer) == "ACC-01 broke in a 1.7 (1.6 holds) together with b 2.2 (2.1 holds)"


def test_releases_that_cannot_be_judged_are_passed_over():
    answer, _ = found(lambda a, b: a >= 20, lambda stack: stack["a"] in range(10, 16))
    assert str(answer) == "ACC-01 broke in a 1.20 (1.19 holds)"


def test_if_they_lie_at_the_break_the_answer_is_a_range():
    answer, _ = found(lambda a, b: a >= 20, lambda stack: stack["a"] in (19, 20))
    assert not answer.exact
    assert (
        str(answer) == "ACC-01 broke after a 1.18, which holds, and at the latest in 1.21 (1.19, 1.20 cannot be judged)"
    )


def test_the_answer_has_every_judged_stack_in_order():
    answer, asked = found(lambda a, b: b >= 3)
    assert len(answer.tried) == asked
    assert answer.tried[0] == ({"a": "1.40", "b": "2.0"}, HOLDS)


# ---- probes ----


def result(stack, **verdicts):
    cases = {name: Case("ACC-01", name, name, "hf-trainer", verdict=verdict) for name, verdict in verdicts.items()}
    return StackResult(stack, cases)


def test_a_stack_is_judged_by_the_cases_that_hold_on_good_and_fail_on_bad():
    good, bad = (
        result("good", a="pass", b="pass", c="fail", d="skipped"),
        result("bad", a="fail", b="pass", c="fail", d="fail"),
    )
    assert targets(good, bad) == ["a"]
    assert result("x", a="known_defect").verdict(["a"]) == BREAKS
    assert result("x", a="pass", c="fail").verdict(["a"]) == HOLDS
    assert result("x", a="skipped").verdict(["a"]) == UNTESTABLE
    assert StackResult("x", reason="no such release").verdict(["a"]) == UNTESTABLE


class FakeProber:
    """Stands for a Prober: gives each stack, by its requirements, this verdict."""

    width = 2

    def __init__(self, **verdicts):
        self.verdicts = verdicts

    def ask(self, stacks):
        return [result(stack, a=self.verdicts[stack]) for stack in stacks]


def test_a_clause_that_holds_on_both_ends_leaves_nothing_to_find():
    from harness.gate.environments import Environment

    ends = [Environment(f"peft=={n}", "python", {"peft": str(n)}, "", str(n)) for n in (1, 2)]
    with pytest.raises(UsageError, match="nothing to find"):
        bisect.bisect("ACC-01", *ends, FakeProber(**{"peft==1": "pass", "peft==2": "pass"}), lambda *_: None)


def test_history_counts_the_cases_that_fail_on_the_bad_stack_and_hold_on_every_good_one():
    (release,) = [release for release in history.chosen(["H3"]) if release.clause == "ACC-01"]
    judged = history.judge(
        release,
        Scope(),
        lambda stacks: [
            result(stacks[0], a="fail", b="fail"),
            result("g", a="pass", b="pass"),
            result("h", a="pass", b="fail"),
        ],
    )
    assert judged.caught == 1
    judged = history.judge(
        release, Scope(), lambda stacks: [result(stacks[0], a="pass"), result("g", a="pass"), result("h", a="pass")]
    )
    assert judged.caught == 0 and "holds" in judged.seen


def test_an_unknown_entry_of_history_is_refused():
    with pytest.raises(UsageError, match="history H99: no such entry; there are H1, "):
        history.chosen(["H99"])


# ---- the index ----


def test_releases_between_two_versions_come_in_order(monkeypatch):
    monkeypatch.setattr(index, "releases", lambda package: ("0.9", "1.0", "1.1", "1.1.post1", "1.10", "2.0"))
    assert index.between("peft", "1.0", "1.10") == ["1.0", "1.1", "1.1.post1", "1.10"]
    assert index.between("peft", "1.10", "1.0") == ["1.10", "1.1.post1", "1.1", "1.0"]
    assert index.between("peft", "1.0.5", "1.1") == ["1.0.5", "1.1"]
