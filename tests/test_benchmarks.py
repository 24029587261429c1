"""Figures of the harness itself, which pytest-benchmark measures and prints. They judge nothing."""

import subprocess
import sys
from contextlib import nullcontext

import pytest

from harness import patches, subjects
from harness.processes.imports import import_upstream
from harness.runs.cache import Runs
from harness.runs.scenarios import PLAIN


@pytest.mark.parametrize("patched", [True, False], ids=["patched", "unpatched"])
@pytest.mark.parametrize("subject", subjects.NAMES)
def test_ten_step_run_in_a_warm_process(benchmark, tmp_path, subject, patched):
    """Runs a minute on one core are 60 times the "OPS" column. Unpatched, upstream is as its users have it."""
    import_upstream()
    runs = Runs(subjects.load(subject), tmp_path)
    with nullcontext() if patched else patches.off():
        rounds = 40 if patched else 10
        trace = benchmark.pedantic(lambda: runs.train(PLAIN, again=True), rounds=rounds, warmup_rounds=3)
    benchmark.extra_info["patches"] = patches.names() if patched else []
    assert len(trace.steps) == 10


def test_import_of_harness(benchmark):
    """Start a new interpreter that imports the command line, the spec and the trace, without torch."""
    command = [sys.executable, "-c", "import harness.cli, harness.spec, harness.trace"]
    done = benchmark.pedantic(lambda: subprocess.run(command, check=True), rounds=5, warmup_rounds=1)
    assert done.returncode == 0
