"""Tests of the harness run tests of suites/ under faults of upstream, so their marker is known here too."""

import importlib

import pytest

from harness import subjects
from harness.mutants.patch import build_anew
from harness.processes.imports import import_upstream
from harness.runs.cache import Runs
from harness.runs.scenarios import PLAIN
from tests import faults


def pytest_configure(config):
    config.addinivalue_line("markers", "clause(id): the clause of the contract that a test of suites/ judges")
    config.addinivalue_line("markers", "proves(id, ...): the clauses of which this test makes a check fail")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test that claims to make a clause fail must have seen a check of that clause fail."""
    faults.FAILED.clear()
    result = yield
    claimed = {id for mark in item.iter_markers("proves") for id in mark.args}
    for clause in sorted(claimed - faults.FAILED):
        pytest.fail(f"this test proves {clause}, its mark says, but no check of {clause} failed in it", pytrace=False)
    return result


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    """Models are built anew in each test: one that was built without its fault would hide it."""
    build_anew(monkeypatch)


@pytest.fixture
def runs(tmp_path):
    """Training runs of the hf-trainer, kept for one test: a fault put into upstream must not reach another's traces."""
    import_upstream()
    return Runs(subjects.load("hf-trainer"), tmp_path)


@pytest.fixture(scope="session")
def imported(tmp_path_factory):
    """Upstream and the plugin, imported as far as a session takes them."""
    importlib.import_module("harness.session.plugin")
    import_upstream()
    Runs(subjects.load("hf-trainer"), tmp_path_factory.mktemp("imported")).train(PLAIN.but(max_steps=1))


@pytest.fixture
def pytester(imported, pytester):
    """pytest's own, which forgets the modules that its session is the first to import: torch's cannot be imported twice."""
    return pytester
