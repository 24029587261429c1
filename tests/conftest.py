"""Fixtures and marks of the tests of the harness. Some run tests of suites/, whose `clause` mark is registered here, too."""

import functools
import importlib
import os
import sys

import pytest
import typer.main

from harness import subjects
from harness.mutants.patch import forget_prototypes
from harness.processes import ranks
from harness.processes.guard import RUN
from harness.processes.imports import import_upstream
from harness.runs.cache import Runs
from harness.runs.scenarios import PLAIN
from harness.where import hint
from tests import faults, forked


def pytest_configure(config):
    os.environ.setdefault(hint.OFF, "1")  # made-up failures need no line about where runs part
    config.addinivalue_line("markers", "clause(id): the clause of the contract that a test of suites/ judges")
    config.addinivalue_line("markers", "proves(id, ...): the clauses of which this test makes a check fail")


def pytest_collection_finish(session):
    """Fork what later forks commands and ranks, while nothing has been trained in this process.

    Of a few files that do not import upstream, no test may need ranks.
    """
    if session.items:
        forked.prepare()
        if "peft" in sys.modules:
            ranks.prepare(pristine=True)


def pytest_unconfigure():
    forked.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fail a test that is marked to prove a clause, if no check of that clause failed in it."""
    faults.FAILED.clear()
    result = yield
    claimed = {id for mark in item.iter_markers("proves") for id in mark.args}
    for clause in sorted(claimed - faults.FAILED):
        pytest.fail(f"this test proves {clause}, its mark says, but no check of {clause} failed in it", pytrace=False)
    return result


@pytest.fixture(scope="session", autouse=True)
def one_command_line():
    """Have typer make its tree of commands once. It makes it at each call, which is most of the time of a wrong usage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    """Build models anew in each test. One that was built before a fault was put in would hide the fault."""
    forget_prototypes(monkeypatch)


@pytest.fixture
def runs(tmp_path):
    """Return training runs of the hf-trainer. They are cached for one test only, so no fault reaches another test."""
    import_upstream()
    return Runs(subjects.load("hf-trainer"), tmp_path)


@pytest.fixture(scope="session")
def imported(tmp_path_factory):
    """Import upstream and the plugin, and train one step, as a session of the suites does."""
    importlib.import_module("harness.session.plugin")
    import_upstream()
    Runs(subjects.load("hf-trainer"), tmp_path_factory.mktemp("imported")).train(PLAIN.but(max_steps=1))


@pytest.fixture
def pytester(imported, pytester, monkeypatch):
    """Return pytest's pytester after upstream was imported. It unloads modules that its session imports, and torch's
    cannot be imported twice.

    Its sessions count as part of a command that is guarded already. Otherwise each would start a watcher (0.1 s). At its end
    each ends its own fork server, and not that of this process, which would take 10 s to start again.
    """
    monkeypatch.setattr(ranks, "_current", None)
    monkeypatch.setenv(RUN, str(pytester.path))
    return pytester
