"""Tests of the harness run tests of suites/ under faults of upstream, so their marker is known here too."""

import pytest

from harness import subjects
from harness.runs import Runs
from harness.warm import warm


def pytest_configure(config):
    config.addinivalue_line("markers", "clause(id): the clause of the contract that a test of suites/ judges")


@pytest.fixture
def runs(tmp_path):
    """Training runs of the hf-trainer, kept for one test: a fault put into upstream must not reach another's traces."""
    warm()
    return Runs(subjects.load("hf-trainer"), tmp_path)
