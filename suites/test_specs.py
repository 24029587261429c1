"""The runs of --spec: a case for each file and each clause whose law applies to any run. Without --spec there is none."""

import pytest

from harness.session.state import STATE


def pytest_generate_tests(metafunc):
    cases = [
        pytest.param(brought, clause, id=f"{brought.name}-{clause}", marks=pytest.mark.clause(clause))
        for brought in metafunc.config.stash[STATE].brought
        for clause in brought.clauses
    ]
    metafunc.parametrize(("brought", "clause"), cases)


def test_run(brought, clause, judge_brought):
    judge_brought(brought, clause)
