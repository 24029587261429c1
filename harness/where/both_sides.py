"""Train two sides and find where they part. See the package for the steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.runs.cache import Runs
from harness.spec import RunSpec
from harness.subjects import Subject
from harness.where.marks import Recorded, Recording
from harness.where.parting import Found, compare
from harness.where.timeline import Run

#: Seeds of the runs that are changed in the last bit. One of two is larger than a third with probability 2/3, so FACTOR
#: leaves room for what two do not show.
SEEDS = (1, 2)

#: record(seed) -> Run: trains a side, changed in the last bit if there is a seed.
Record = Callable[["int | None"], Run]


@dataclass
class Side:
    """One of two runs that are compared. about: what messages call it. record: trains it. spec: what is trained."""

    about: str
    spec: RunSpec
    record: Record


def record(subject: Subject, spec: RunSpec, directory: Path, seed: int | None = None, steps: int = 0) -> Run:
    """Train a spec here, and return its trace with the recordings of its ranks.

    - directory: an empty one, for the run's files and the recordings.
    - seed, steps: as for `harness.where.marks.Recorded`.

    A run that is changed in the last bit is not compiled, since compiled modules run no hooks.
    """
    if seed is not None and spec.arguments.get("torch_compile"):
        spec = spec.but(**{name: None for name in spec.arguments if name.startswith("torch_compile")})
    recorded = Recorded(subject, directory / "recordings", seed, steps)
    trace = Runs(recorded, directory / "runs", spec.launch.device).train(spec)
    return Run(trace, load(directory / "recordings", 1 + len(trace.ranks)))


def load(directory: Path, ranks: int) -> list[Recording]:
    """Return the recordings of the ranks of a run."""
    return [Recording.load(directory / str(rank)) for rank in range(ranks)]


def find(one: Side, other: Side, exact: bool = False) -> Found:
    """Find where two sides part.

    - exact: at the first bit that differs; else beyond what rounding explains.

    Runs that are changed in the last bit are trained only if the sides are not equal bit for bit.
    """
    ours, theirs = one.record(None), other.record(None)
    alike = precision(one.spec) == precision(other.spec)
    found = compare(ours, theirs, None, alike)
    if found.bit is not None and not exact:
        sides = [(one, ours)] if alike else [(one, ours), (other, theirs)]
        noise = [(plain, side.record(seed)) for side, plain in sides for seed in SEEDS]
        found = compare(ours, theirs, noise, alike)
    found.notes += _notes(ours, theirs, found)
    return found


def precision(spec: RunSpec) -> tuple[object, ...]:
    """Return what decides how much a run rounds."""
    half = [bool(spec.arguments.get(name)) for name in ("bf16", "fp16", "tf32")]
    model = spec.model
    return (
        *half,
        model.dtype,
        repr(model.quantization),
        model.quant_storage,
        model.prepare_for_kbit,
        spec.launch.device,
    )


def _notes(ours: Run, theirs: Run, found: Found) -> list[str]:
    said = []
    for run, which in ((ours, "A"), (theirs, "B")):
        if run.trace.error:
            said.append(f"{which} ended with an error after {len(run.trace.steps)} steps: {run.trace.error}")
        if not any(recording.entries for recording in run.recordings):
            said.append(f"{which} shows no model to an Observer, so only its trace was compared")
        elif run.trace.spec.arguments.get("torch_compile"):
            said.append(f"{which} is compiled: of its modules only the parameters' gradients were compared")
    if found.alone:
        parts = ", ".join(f"{count} of {stage}" for stage, count in found.alone.items())
        said.append(f"only one of the two has these, so they were not compared: {parts}")
    return said
