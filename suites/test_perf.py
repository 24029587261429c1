"""PERF: what a step costs: counted on any machine, and timed with --timed.

Nothing here measures a call that the harness has patched for speed (`harness.patches`).
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from harness import patches, subjects
from harness.laws import throughput
from harness.runs.scenarios import PLAIN, by_route, cases, saving
from harness.session.state import skip_if
from harness.throughput import counters, pairs

#: More rows than the counted steps need, since a step at the end of an epoch has other costs.
COUNTED = PLAIN.but(logging_steps=500, data={"rows": 160})
CHECKPOINTED: dict[str, Any] = {
    "activation_checkpointing": True,
    "activation_checkpointing_kwargs": {"use_reentrant": False},
}
STEPS = by_route(
    {
        "plain": COUNTED,
        "accumulation": COUNTED.but(gradient_accumulation_steps=2),
        "checkpointing-bf16": COUNTED.but(bf16=True, **CHECKPOINTED),
    }
)


@pytest.fixture
def steps(runs, upstream, tmp_path):
    """steps(spec, subject=None, run=0, brief=False): count what a spec's steps cost.

    Each count is made once and cached. Skips, with the reason, if the subject does not train the spec.

    - subject: another subject than the judged one.
    - run: a number that tells one count of a spec from the next.
    - brief: count only what reaches the dispatcher.
    """

    def counted(spec, subject=None, run=0, brief=False):
        subject = subject or upstream
        skip_if(subject.unsupported(runs.on_device(spec)))
        key, whole = ((subject.name, spec.hash, run, kind) for kind in (brief, False))
        if whole in runs.measured:
            return runs.measured[whole]
        if key not in runs.measured:
            place = tmp_path / subject.name / f"{run}-{brief}"
            runs.measured[key] = counters.count(subject, runs.on_device(spec), place, brief)
        return runs.measured[key]

    return counted


@pytest.mark.clause("PERF-01")
@cases(STEPS)
def test_a_step_costs_what_is_recorded(spec, steps, baseline, request, judge):
    name = request.node.callspec.id
    # Nothing is counted if no baseline is recorded.
    bf16 = spec.arguments.get("bf16", False)
    recorded = baseline("counters", name, lambda: steps(spec).to_json(), bf16=bf16)
    judge(throughput.as_recorded(steps(spec), counters.Counters.from_json(recorded)))


@pytest.mark.clause("PERF-02")
@cases({name: STEPS[name] for name in ("plain", "accumulation")})
def test_steps_alike_cost_alike(spec, steps, judge):
    judge(throughput.steady(steps(spec), steps(spec, run=1)))


PACKED = by_route({"nf4": COUNTED.but(model={"quantization": "nf4", "dtype": "bfloat16"}, bf16=True)})


@pytest.mark.clause("PERF-03")
@cases(STEPS | PACKED)
def test_a_step_costs_no_more_than_the_path_takes(spec, steps, judge):
    seen, reference = steps(spec, brief=True), steps(spec, subjects.load("reference"), brief=True)
    judge(throughput.no_more_than_reference(seen, reference, spec.arguments.get("gradient_accumulation_steps", 1)))


#: Seconds of timing, and the slowdown that they reveal on a machine that does nothing else.
BUDGET, MARGIN = 60.0, 0.02


@pytest.mark.clause("PERF-04")
@cases({name: STEPS[name].but(max_steps=1_000_000) for name in ("plain", "accumulation")})
def test_a_step_takes_no_longer_than_recorded(spec, runs, timed, baseline, request, judge):
    spec, name = runs.on_device(spec), request.node.callspec.id
    yardstick = pairs.Entrant("reference", "reference", spec)
    subject = pairs.Entrant("subject", request.config.getoption("--subject"), spec, tuple(timed.preloads))
    judgement, seen = pairs.compare(yardstick, subject, MARGIN, BUDGET, decide=False)
    wall = judgement.intervals["wall"]
    shown = {"ratio": 1 + wall.estimate, "low": 1 + wall.low, "high": 1 + wall.high}
    recorded = baseline("ratios", name, lambda: shown)
    judge(throughput.no_slower(seen, recorded, MARGIN, BUDGET))


#: What Python, progress output and the model card's template write besides. Measured: under a KiB.
BESIDE = 16 * 1024

#: torch.load reads the directory of a tensor file several times: 18 to 27 KB more than a file of 14 to 237 KB has.
AGAIN = 32 * 1024

#: Endings of tensor files.
TENSORS = (".pt", ".pth", ".safetensors")

needs_proc = pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="counts bytes by /proc/self/io")
LARGE = saving(PLAIN.but(max_steps=2, lora={"r": 64}), every=2)


@pytest.mark.clause("PERF-05")
@needs_proc
@cases(by_route({"adapter": LARGE}))
def test_saving_writes_each_byte_once(spec, upstream, tmp_path, benchmark, judge):
    trainer = upstream.build(spec, tmp_path)
    trainer.train()
    checkpoint, written = tmp_path / "checkpoint-2", []

    def save():
        before = moved("wchar")
        trainer._save_checkpoint(trainer.model, trial=None)
        written.append(moved("wchar") - before)

    # Each save writes a new directory, as in a run: peft makes the model card anew only if there is none yet.
    with patches.off():
        benchmark.pedantic(save, setup=lambda: shutil.rmtree(checkpoint), rounds=5, warmup_rounds=1)
    files = files_of(checkpoint)
    benchmark.extra_info["bytes"] = sum(files.values())
    judge(throughput.written_once(max(written), files, BESIDE))


@pytest.mark.clause("PERF-06")
@needs_proc
@cases({"adapter": LARGE})
def test_resuming_reads_each_byte_once(spec, upstream, tmp_path, benchmark, judge):
    trainer = upstream.build(spec, tmp_path)
    trainer.train()
    checkpoint, read = tmp_path / "checkpoint-2", []

    def load():
        before = moved("rchar")
        trainer._load_from_checkpoint(str(checkpoint))
        trainer._load_optimizer_and_scheduler(str(checkpoint))
        trainer._load_rng_state(str(checkpoint))
        read.append(moved("rchar") - before)

    with patches.off():
        benchmark.pedantic(load, rounds=5, warmup_rounds=1)
    tensors = {name: size for name, size in files_of(checkpoint).items() if Path(name).suffix in TENSORS}
    benchmark.extra_info["bytes"] = sum(tensors.values())
    judge(throughput.read_once(max(read), tensors, AGAIN))


def files_of(checkpoint):
    """Return names and sizes in bytes of a checkpoint's files."""
    return {file.name: file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()}


def moved(which):
    """Return how many bytes this process has read ("rchar") or written ("wchar") until now."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines[which])
