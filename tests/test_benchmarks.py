"""Figures of the harness itself, measured and printed by pytest-benchmark. They judge nothing."""

import subprocess
import sys

import pytest

from harness import subjects
from harness.processes.imports import import_upstream
from harness.runs.cache import Runs
from harness.runs.scenarios import PLAIN


@pytest.mark.parametrize("subject", subjects.NAMES)
def test_ten_step_run_in_a_warm_process(benchmark, tmp_path, subject):
    """Runs a minute on one core are 60 times the "OPS" column."""
    import_upstream()
    runs = Runs(subjects.load(subject), tmp_path)
    trace = benchmark.pedantic(lambda: runs.train(PLAIN, again=True), rounds=40, warmup_rounds=3)
    assert len(trace.steps) == 10


def test_import_of_harness(benchmark):
    """A new interpreter that imports the command line, the spec and the trace, without torch."""
    command = [sys.executable, "-c", "import harness.cli, harness.spec, harness.trace"]
    done = benchmark.pedantic(lambda: subprocess.run(command, check=True), rounds=5, warmup_rounds=1)
    assert done.returncode == 0
