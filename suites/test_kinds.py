"""Kinds of method, model and task that are judged by one run each, by every law that needs few further runs.

`harness/runs/kinds.py` is the table. Each run has two steps on a tiny model; it is trained once more from its first
checkpoint, and by the other route. Laws that do not apply to a run are skipped with the reason.
"""

import pytest

from harness import defaults, subjects
from harness.laws import comparisons, universal
from harness.runs import judging
from harness.runs.kinds import KINDS
from harness.session.state import NotComparable, skip_if, skip_uncompared

#: Laws of one run that these runs are judged by. The others are about the loop, which no kind of adapter changes.
OF_ONE_RUN = ("API-02", "API-15", "FRZ-01", "FRZ-02", "FRZ-03", "LOSS-01", "CKPT-04", "CKPT-07", "CKPT-21", "CKPT-25")

#: Laws that train the run once more.
OF_SEVERAL_RUNS = ("RES-01", "API-05")

CASES = [
    pytest.param(name, clause, id=f"{name}", marks=pytest.mark.clause(clause))
    for clause in (*OF_ONE_RUN, *OF_SEVERAL_RUNS)
    for name in KINDS
]


@pytest.mark.parametrize(("kind", "clause"), CASES)
def test_kind(kind, clause, runs, train, judge):
    spec = defaults.plain(KINDS[kind])
    trace = train(spec)
    if clause in OF_ONE_RUN:
        excluded = universal.left_out(trace) 
        judged = excluded.get(clause) or universal.modelled.why_not(clause, spec) or (lambda: universal.LAWS_OF_ONE_RUN[clause](trace))
    else:
        judged = universal.modelled.why_not(clause, spec) or (lambda: universal.LAWS_OF_SEVERAL_RUNS[clause](train, spec))
    judge(skip_uncompared(judging.decided(judged)))
