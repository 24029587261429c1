"""Judge made-up records of mutants: what counts as killed, what usual checks catch, the page, and children that hang."""

import dataclasses
import errno
import os
import time

import pytest

from harness.errors import OutOfSpace
from harness.files import out_of_space
from harness.mutants import Mutant, nothing, replace, usual_checks
from harness.mutants.child import Record, Trained
from harness.mutants.judge import CHANGED, ERROR, HELD, KILLED, UNDECIDED, Outcome, by_error, judge
from harness.mutants.matrix import Matrix
from harness.mutants.pool import Pool
from harness.mutants.show import summary, to_json, write_html
from harness.verdict import AMBIGUOUS, FAIL, KNOWN_DEFECT, PASS, SKIPPED, UNEXPECTED_PASS, Case

# ---- outcomes of cases ----

MUTANT = Mutant("a-mutant", "It has no process id.", replace("os", "getpid", nothing), ("LOSS-01",))


def case(verdict, *seen, expected="the gradient is right"):
    return Case(
        "LOSS-01", "ragged", "t", "hf-trainer", verdict=verdict, evidence={"expected": expected, "seen": list(seen)}
    )


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (PASS, case(FAIL, "step 1: the gradient is 2 times what it must be"), KILLED),
        (PASS, case(FAIL, "the run ended with RuntimeError: x", "no checkpoint was written"), ERROR),
        (PASS, case(FAIL, "(the run that saved) the run ended with RuntimeError: x"), ERROR),
        (PASS, case(FAIL, "KeyError: 'x'", expected="the case runs to its end"), ERROR),
        (PASS, case(FAIL, "the run ended with KeyError: x", expected="ValueError before the first step"), KILLED),
        (PASS, case(AMBIGUOUS, "too close"), UNDECIDED),
        (PASS, case(PASS), HELD),
        (KNOWN_DEFECT, case(KNOWN_DEFECT, "as ever"), HELD),
        (KNOWN_DEFECT, case(UNEXPECTED_PASS), CHANGED),
        (KNOWN_DEFECT, case(FAIL, "other words"), CHANGED),
    ],
)
def test_a_case_is_killed_by_a_judged_sentence_alone(before, after, outcome):
    baseline = {("t", "LOSS-01"): dataclasses.replace(after, verdict=before)}
    assert [mutated.outcome for mutated in judge(MUTANT, baseline, Record([after])).cases] == [outcome]


def test_a_case_that_fails_without_a_mutant_says_nothing():
    failing = case(FAIL, "step 1")
    assert judge(MUTANT, {("t", "LOSS-01"): failing}, Record([failing])).cases == []
    assert not by_error(failing)


# ---- usual checks ----

GOLDEN = Trained("spec", "", None, 5.0, {1: 5.1, 2: 5.0}, {1: 0.2, 2: 0.3})


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({}, (False, False, False)),
        ({"error": "KeyError: x"}, (True, True, True)),
        ({"train_loss": 11.0}, (True, False, False)),
        ({"train_loss": None}, (True, False, False)),
        ({"train_loss": float("nan")}, (True, False, False)),
        ({"losses": {1: 5.1, 2: 5.0009}}, (False, True, False)),  # a drift of 4.5e-4
        ({"losses": {1: 5.100001, 2: 5.000001}}, (False, False, False)),
        ({"losses": {1: 5.1, 2: float("nan")}}, (False, True, True)),
        ({"norms": {1: 0.2005, 2: 0.3005}}, (False, False, False)),
        ({"norms": {1: 0.2, 2: 0.35}}, (False, True, False)),
        ({"losses": {1: 5.1, 2: 5.3}}, (False, True, True)),
        ({"losses": {1: 5.1}}, (False, True, False)),
    ],
)
def test_what_the_usual_checks_catch(change, seen):
    found = usual_checks.caught([dataclasses.replace(GOLDEN, **change)], {"spec": GOLDEN})
    assert tuple(found.values()) == seen


def test_a_run_without_a_golden_is_not_compared():
    assert not any(usual_checks.caught([dataclasses.replace(GOLDEN, error="x")], {}).values())
    assert all(usual_checks.caught([], {}, died=True).values())


def test_the_page_has_a_cell_for_each_kill(tmp_path):
    baseline = {("t", "LOSS-01"): case(PASS)}
    killed = judge(MUTANT, baseline, Record([case(FAIL, "step 1: <twice>")]))
    matrix = Matrix([killed, Outcome(dataclasses.replace(MUTANT, name="other"))], 1, [], 2, 1.0)
    write_html(matrix, tmp_path / "matrix.html")
    page = (tmp_path / "matrix.html").read_text()
    assert page.count('<td class="k"') == 1 and "step 1: \\u003ctwice\\u003e" in page
    assert page.index("other") < page.index("a-mutant")
    assert [mutant["status"] for mutant in to_json(matrix)["mutants"]] == ["killed", "survived"]


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        (1, "1 mutant: 1 killed, by 1 clause. 1 case with a mutant, 1 without. 1 s, 2 processes at a time."),
        (2, "2 mutants: 2 killed, by 1 clause. 2 cases with a mutant, 1 without. 1 s, 2 processes at a time."),
    ],
)
def test_the_summary_counts_in_proper_english(outcomes, words):
    killed = judge(MUTANT, {("t", "LOSS-01"): case(PASS)}, Record([case(FAIL, "step 1")]))
    assert summary(Matrix([killed] * outcomes, 1, [], 2, 1.0)) == words


def test_a_child_that_hangs_is_ended_and_told(tmp_path):
    def hang(write):
        write("running", "suites/test_loss.py::test_x[y]")
        time.sleep(60)

    def work(write):
        write("digest", {"plain": "0"})

    def leave(write):
        write("running", "suites/test_loss.py::test_x[y]")
        os._exit(3)

    tasks = [("a", hang), ("b", work), ("c", leave)]
    found = {key: (record, fate) for key, record, fate in Pool(tmp_path, 2, 0.5).run(tasks)}
    assert found["a"][1] == "hung in test_loss.py::test_x[y]"
    assert found["b"][0].digests == {"plain": "0"} and found["b"][1] == ""
    assert found["c"][1] == "ended with exit status 3 in test_loss.py::test_x[y]"
    assert not any(tmp_path.iterdir())


def _not_judged(write):
    reason = out_of_space(OSError(errno.ENOSPC, "No space left on device", "/there/x"))
    write("case", dataclasses.asdict(dataclasses.replace(case(SKIPPED), misused=True, reason=reason)))


def _raises(write):
    raise OSError(errno.ENOSPC, "No space left on device", "/there/x")


@pytest.mark.parametrize("work", [_not_judged, _raises], ids=["case", "child"])
def test_a_mutant_has_not_survived_because_the_disk_was_full(tmp_path, work):
    with pytest.raises(OutOfSpace, match="no space left on "):
        list(Pool(tmp_path, 1, 60).run([("a", work)]))
