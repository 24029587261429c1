"""The laws that compare runs, over runs with the arguments that real runs use (harness/runs/configured.py)."""

import pytest

from harness import subjects
from harness.laws import comparisons
from harness.runs.configured import MIXED
from harness.runs.scenarios import cases


@pytest.mark.clause("GEN-01")
@cases(MIXED)
def test_a_configured_run_is_the_references(spec, train, runs, judge):
    if reason := subjects.load("reference").unsupported(spec):
        pytest.skip(reason)
    train(spec)
    judge(comparisons.as_reference(runs.train, spec))


@pytest.mark.clause("RES-01")
@cases(MIXED)
def test_a_configured_run_resumes(spec, train, judge):
    judge(comparisons.resumes(train, spec))
