"""Clauses of which no case was judged: which end a run with 3, and what the summary says of them."""

import io
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from harness import contract, environment
from harness.contract.clause import Chapter, Clause
from harness.session.report import Effort, exit_code, summary, unjudged
from harness.verdict import FAIL, NOT_COMPARABLE, PASS, SKIPPED, Case

GPU = "shows on a GPU only: --device cuda"

CHAPTER = Chapter(
    "XYZ",
    "made up",
    (
        Clause("XYZ-01", "One MUST be one.", "nowhere:1"),
        Clause("XYZ-02", "Two MUST be two.", "nowhere:2", tier="gpu"),
        Clause("XYZ-03", "Three MUST be three.", "nowhere:3"),
        Clause("XYZ-04", "Four MUST be four.", "nowhere:4", needs=("no-such-package>=1",)),
        Clause("XYZ-05", "Five MUST be five.", "nowhere:5", option="--timed"),
        Clause("XYZ-06", "Six MUST be six.", "nowhere:6", device="cpu"),
    ),
)


@pytest.fixture(autouse=True)
def made_up_contract(monkeypatch):
    monkeypatch.setattr(contract, "CHAPTERS", ("xyz",))
    monkeypatch.setitem(sys.modules, "harness.contract.xyz", SimpleNamespace(CHAPTER=CHAPTER))


def case(clause, verdict=SKIPPED, reason=GPU, device="cpu", **fields):
    return Case(clause, "plain", "test_xyz.py::test", "hf-trainer", device, verdict, reason=reason, **fields)


HELD = case("XYZ-01", PASS, "")


def printed(cases, named=False):
    stream = io.StringIO()
    summary(Console(file=stream, soft_wrap=True), cases, Effort(), named)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("skipped", "code"),
    [
        pytest.param(case("XYZ-02"), 0, id="needs-a-gpu"),
        pytest.param(case("XYZ-04", reason="needs no-such-package>=1"), 0, id="needs-a-package"),
        pytest.param(case("XYZ-05", reason="takes two minutes: --timed"), 0, id="needs-an-option"),
        pytest.param(case("XYZ-06", device="cuda"), 0, id="is-about-a-cpu"),
        pytest.param(case("XYZ-03", unsupported=True), 0, id="the-subject-cannot"),
        pytest.param(case("XYZ-03", NOT_COMPARABLE, "nothing is recorded here"), 0, id="no-baseline"),
        pytest.param(case("XYZ-03"), 3, id="declares-no-need"),
        pytest.param(case("XYZ-02", device="cuda"), 3, id="has-its-gpu"),
        pytest.param(case("XYZ-06"), 3, id="is-on-a-cpu"),
    ],
)
def test_a_run_of_everything_ends_with_3_unless_the_cause_is_declared(skipped, code):
    assert exit_code([HELD, skipped]) == code
    assert exit_code([HELD, skipped], named=True) == 3


def test_a_clause_is_judged_if_one_of_its_cases_is():
    assert unjudged([HELD, case("XYZ-01")]) == []
    assert exit_code([HELD, case("XYZ-01")], named=True) == 0


def test_a_run_in_which_nothing_was_judged_never_ends_with_0():
    assert exit_code([case("XYZ-02")]) == exit_code([case("XYZ-02"), case("XYZ-04")]) == 3


def test_a_failure_outweighs_what_was_not_judged():
    assert exit_code([HELD, case("XYZ-02"), case("XYZ-03", FAIL)], named=True) == 1


def test_one_line_names_the_clauses_and_the_reasons():
    output = printed([HELD, case("XYZ-02"), case("XYZ-02"), case("XYZ-05", reason="needs two minutes: --timed")])
    assert f"not judged: 2 clauses: XYZ-02 ({GPU}); XYZ-05 (needs two minutes: --timed)" in output
    assert "undecided:" not in output
    assert "not judged" not in printed([HELD])


def test_a_run_that_ends_with_3_names_the_clauses_that_it_was_asked_for():
    cases = [HELD, case("XYZ-02"), case("XYZ-03")]
    assert "undecided: no case was judged of XYZ-03, which" in printed(cases)
    assert "undecided: no case was judged of XYZ-02, XYZ-03, which" in printed(cases, named=True)


def test_an_optional_package_that_cannot_be_imported_is_as_good_as_missing(monkeypatch):
    """optuna is installed here, but what it imports is not."""
    environment.import_error.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("optuna", "colorlog")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "colorlog", None)
    try:
        assert environment.unmet("optuna>=1").startswith("optuna cannot be imported (import of colorlog halted")
        clause = contract.clauses()["XYZ-01"]
        needing = replace(clause, needs=("optuna",))
        assert needing.lacks("cpu") == "optuna"
        assert clause.lacks("cpu") is None
    finally:
        environment.import_error.cache_clear()
