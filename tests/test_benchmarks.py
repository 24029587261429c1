"""Figures of the harness itself, which pytest-benchmark measures and prints. Only an import has a limit."""

import subprocess
import sys
from contextlib import nullcontext

import pytest

from harness import patches, subjects
from harness.processes.imports import import_upstream
from harness.runs.cache import Runs
from harness.runs.scenarios import PLAIN


@pytest.mark.parametrize("patched", [True, False], ids=["patched", "unpatched"])
@pytest.mark.parametrize("subject", ["hf-trainer", "reference"])
def test_ten_step_run_in_a_warm_process(benchmark, tmp_path, subject, patched):
    """Runs a minute on one core are 60 times the "OPS" column. Unpatched, upstream is as its users have it."""
    import_upstream()
    runs = Runs(subjects.load(subject), tmp_path)
    with nullcontext() if patched else patches.off():
        rounds = 40 if patched else 10
        trace = benchmark.pedantic(lambda: runs.train(PLAIN, again=True), rounds=rounds, warmup_rounds=3)
    benchmark.extra_info["patches"] = patches.names() if patched else []
    assert len(trace.steps) == 10


#: Seconds of CPU that a new interpreter may take to start and import a module. On two cores in November 2026 it took
#: 0.03 s and 0.2 s.
LIMITS = {"harness": 0.15, "harness.cli": 0.5}


@pytest.mark.parametrize("module", LIMITS)
def test_import_of_harness(benchmark, module):
    """The fastest of five new interpreters is within the limit, and has imported neither torch nor transformers."""
    code = f"import sys, time, {module}; print(time.process_time(), 'torch' in sys.modules or 'transformers' in sys.modules)"
    seconds = []

    def start():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        cpu, heavy = done.stdout.split()
        assert heavy == "False"
        seconds.append(float(cpu))

    benchmark.pedantic(start, rounds=5, warmup_rounds=1)
    assert min(seconds) < LIMITS[module]
