"""The search for the release that broke a clause, on made-up releases."""

import pytest

from harness.errors import UsageError
from harness.gate import bisect, history, index
from harness.gate.probe import BREAKS, HOLDS, UNTESTABLE, Seen, targets
from harness.gate.scope import Scope
from harness.verdict import Case

RELEASES = {"a": [f"1.{n}" for n in range(41)], "b": [f"2.{n}" for n in range(6)]}


def releases(package, one, other):
    versions = RELEASES[package]
    return versions[versions.index(one) : versions.index(other) + 1]


def found(breaks, untestable=lambda stack: False):
    """(answer, how many stacks were asked) for a clause that breaks where breaks(a, b), the minor versions, says so."""
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


def test_the_other_package_is_told():
    answer, _ = found(lambda a, b: b >= 3)
    assert str(answer) == "ACC-01 broke in b 2.3 (2.2 holds)"


def test_two_packages_that_must_change_together_are_both_told():
    answer, _ = found(lambda a, b: a >= 7 and b >= 2)
    assert str(answer) == "ACC-01 broke in a 1.7 (1.6 holds) together with b 2.2 (2.1 holds)"


def test_releases_that_cannot_be_judged_are_passed_over():
    answer, _ = found(lambda a, b: a >= 20, lambda stack: stack["a"] in range(10, 16))
    assert str(answer) == "ACC-01 broke in a 1.20 (1.19 holds)"


def test_where_they_lie_at_the_break_the_answer_is_a_range():
    answer, _ = found(lambda a, b: a >= 20, lambda stack: stack["a"] in (19, 20))
    assert not answer.exact
    assert str(answer) == "ACC-01 broke after a 1.18, which holds, and not after 1.21 (1.19, 1.20 cannot be judged)"


def test_what_was_tried_is_kept_in_order():
    answer, asked = found(lambda a, b: b >= 3)
    assert len(answer.tried) == asked
    assert answer.tried[0] == ({"a": "1.40", "b": "2.0"}, HOLDS)


# ---- probes ----


def seen(stack, **verdicts):
    cases = {name: Case("ACC-01", name, name, "hf-trainer", verdict=verdict) for name, verdict in verdicts.items()}
    return Seen(stack, cases)


def test_a_stack_is_judged_by_the_cases_that_tell_good_from_bad():
    good, bad = (
        seen("good", a="pass", b="pass", c="fail", d="skipped"),
        seen("bad", a="fail", b="pass", c="fail", d="fail"),
    )
    assert targets(good, bad) == ["a"]
    assert seen("x", a="known_defect").verdict(["a"]) == BREAKS
    assert seen("x", a="pass", c="fail").verdict(["a"]) == HOLDS
    assert seen("x", a="skipped").verdict(["a"]) == UNTESTABLE
    assert Seen("x", reason="no such release").verdict(["a"]) == UNTESTABLE


class Answers:
    """In place of a prober."""

    judged = Scope()

    def __init__(self, **verdicts):
        self.verdicts = verdicts

    def ask(self, stacks):
        return [seen(stack, a=self.verdicts[stack]) for stack in stacks]


def test_a_clause_that_holds_on_both_ends_leaves_nothing_to_find():
    from harness.gate.environments import Environment

    ends = [Environment(f"peft=={n}", "python", {"peft": str(n)}, "", str(n)) for n in (1, 2)]
    with pytest.raises(UsageError, match="nothing to find"):
        bisect.bisect("ACC-01", *ends, Answers(**{"peft==1": "pass", "peft==2": "pass"}), lambda *told: None)


def test_history_takes_a_release_for_caught_where_the_clause_tells_bad_from_every_good_one():
    (release,) = [one for one in history.chosen(["H3"]) if one.clause == "ACC-01"]
    told = history.put_to_the_test(
        release,
        Scope(),
        lambda stacks: [
            seen(stacks[0], a="fail", b="fail"),
            seen("g", a="pass", b="pass"),
            seen("h", a="pass", b="fail"),
        ],
    )
    assert told.caught == 1
    told = history.put_to_the_test(
        release, Scope(), lambda stacks: [seen(stacks[0], a="pass"), seen("g", a="pass"), seen("h", a="pass")]
    )
    assert told.caught == 0 and "holds" in told.seen


def test_an_unknown_entry_of_history_is_refused():
    with pytest.raises(UsageError, match="history H99: no such entry; there are H1, "):
        history.chosen(["H99"])


# ---- the index ----


def test_releases_between_two_versions_come_in_order(monkeypatch):
    monkeypatch.setattr(index, "_all", lambda package: ("0.9", "1.0", "1.1", "1.1.post1", "1.10", "2.0"))
    assert index.between("peft", "1.0", "1.10") == ["1.0", "1.1", "1.1.post1", "1.10"]
    assert index.between("peft", "1.10", "1.0") == ["1.10", "1.1.post1", "1.1", "1.0"]
    assert index.between("peft", "1.0.5", "1.1") == ["1.0.5", "1.1"]
