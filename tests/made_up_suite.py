"""A suite of one file under a made-up contract of two clauses, for tests of the pytest plugin.

A test module gets the fixture `suite` with `pytest_plugins = ["pytester", "tests.made_up_suite"]`.
"""

import json
import os
import sys
from types import SimpleNamespace

import pytest

from harness import contract, paths
from harness.contract.clause import Chapter, Clause
from harness.paths import SUITES
from tests import forked

CONFTEST = 'pytest_plugins = ["harness.session.plugin"]'

HOLDS = """
import pytest
from harness.verdict import same, verdict, Verdict

@pytest.mark.clause("XYZ-01")
@pytest.mark.parametrize("number", [pytest.param(1, id="one"), pytest.param({second}, id="other")])
def test_one(judge, number):
    judge(same("the number", number, 1, number=number))

@pytest.mark.clause("XYZ-02")
def test_two():
    raise RuntimeError("never run")
"""


CHAPTER = Chapter(
    "XYZ",
    "made up",
    (
        Clause("XYZ-01", "One MUST be one.", "nowhere:1"),
        Clause("XYZ-02", "Two MUST be two.", "nowhere:2", needs=("no-such-package>=1",)),
    ),
)


@pytest.fixture
def suite(pytester, monkeypatch):
    """suite(code, *options): run a suite of one file under a made-up contract; (exit code, output, JSON report)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(code, *options, expectations=""):
        folder = pytester.mkdir("suites")
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "test_xyz.py").write_text(code)
        (folder / "expectations").mkdir()
        (folder / "expectations" / "xyz.toml").write_text(expectations)
        monkeypatch.setattr(paths, "SUITES", folder)
        monkeypatch.setattr(contract, "CHAPTERS", ("xyz",))
        monkeypatch.setitem(sys.modules, "harness.contract.xyz", SimpleNamespace(CHAPTER=CHAPTER))
        done = pytester.runpytest_inprocess("suites", "-p", "no:cacheprovider", "--json", "out.json", *options)
        out = pytester.path / "out.json"
        output = done.stdout.str() + done.stderr.str()
        return int(done.ret), output, json.loads(out.read_text()) if out.exists() else None

    return run


def defect(**fields):
    values = {
        "clause": "XYZ-01",
        "scenario": "other",
        "versions": ["torch>=1"],
        "match": "2",
        "reason": "known",
        **fields,
    }
    return "[[defect]]\n" + "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def verdicts(report):
    return {
        (clause["id"], case["scenario"]): case["verdict"] for clause in report["clauses"] for case in clause["cases"]
    }


#: A module that gives a new process the made-up contract, with -p (see `in_new_process`).
MADE_UP = """
import sys
from pathlib import Path
from types import SimpleNamespace

from harness import contract, paths
from tests.made_up_suite import CHAPTER

paths.SUITES = Path(__file__).with_name("suites")
contract.CHAPTERS = ("xyz",)
sys.modules["harness.contract.xyz"] = SimpleNamespace(CHAPTER=CHAPTER)
"""


def in_new_process(pytester, *options, run=forked.run, **variables):
    """Run the suite in a process of its own, by `run`, and return what `subprocess.run` returns."""
    pytester.makepyfile(made_up=MADE_UP)
    command = [sys.executable, "-m", "pytest", "suites", "-p", "no:cacheprovider", "-p", "made_up", *options]
    path = os.pathsep.join([str(SUITES.parent), str(pytester.path)])
    return run(command, env={**os.environ, "PYTHONPATH": path, **variables})
