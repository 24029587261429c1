"""The command `peft-harness where`, for sides that this environment trains (`harness.gate.where`: in other stacks)."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from harness import subjects
from harness.environment import check_device
from harness.errors import UsageError
from harness.files import write_whole
from harness.processes import apart, ranks
from harness.processes.cuda_free_fork import cuda_untouched
from harness.processes.imports import import_upstream
from harness.progress import screen
from harness.spec import RunSpec, changes
from harness.trace import Trace
from harness.where import both_sides
from harness.where.both_sides import Side
from harness.where.parting import FACTOR, Found
from harness.where.sides import Named
from harness.where.timeline import Run

SCHEMA_VERSION = 1

#: Lines of the path on the screen. The JSON has more of it.
_LINES = 12

#: makes(side, its directory) -> what records it.
Make = Callable[[Named, Path], both_sides.Record]


def where(one: Named, other: Named, exact: bool, json_file: Path | None, make: Make) -> int:
    """Train both sides, print where they part, and write it. Return 0 if they are equal, 1 if they part.

    - exact: part at the first bit that differs.
    - make: makes what records a side.

    Raises UsageError if a side cannot be trained.
    """
    # This process forks what trains, so it must not start CUDA itself.
    with cuda_untouched():
        for side in (one, other):
            check_device(side.spec.launch.device)
    with tempfile.TemporaryDirectory() as temporary:
        ours, theirs = [
            Side(side.words or "as it is", side.spec, make(side, Path(temporary, side.where))) for side in (one, other)
        ]
        found = both_sides.find(ours, theirs, exact)
    found.notes[:0] = [f"{side.where}: {sentence}" for side in (one, other) for sentence in side.said]
    _show(one, other, found, exact)
    if json_file is not None:
        write_whole(json_file, json.dumps(to_json(one, other, found, exact), indent=1) + "\n")
    return 0 if found.first is None else 1


def in_forks(side: Named, directory: Path, steps: int) -> both_sides.Record:
    """Return what records a side in forks of this process, which never trains itself.

    - steps: optimizer steps in which modules are recorded; 0: all.
    """
    with cuda_untouched():
        import_upstream(threads=0)
    what = f"{side.where}, {side.words!r}"

    def record(seed: int | None) -> Run:
        into = directory / str(seed)
        into.mkdir(parents=True)

        def work() -> int:
            with contextlib.redirect_stdout(io.StringIO()):
                train(side.spec, side.subject, into, seed, steps, side.preload, what)
            return 0

        if apart.judged(work, what):
            raise UsageError(f"{what}: could not be trained; the reason is above")
        return stored(into)

    return record


def train(
    spec: RunSpec, subject: str, into: Path, seed: int | None, steps: int, preload: tuple[str, ...], where: str
) -> None:
    """Train a side in this process, and store its trace and recordings in a directory (`stored`).

    Raises UsageError if the subject does not train such a spec, or if the run ends before its first step.
    """
    import_upstream(list(preload), threads=spec.launch.threads)
    ranks.settings.preloads = preload
    judged = subjects.load(subject)
    if reason := subjects.unsupported(judged, spec):
        raise UsageError(f"{where}: subject {judged.name} does not train such a spec ({reason})")
    run = both_sides.record(judged, spec, into, seed, steps)
    if run.trace.error and not run.trace.steps:
        raise UsageError(f"{where}: upstream refuses it: {run.trace.error}")
    run.trace.save(into / "trace")


def stored(into: Path) -> Run:
    """Return what `train` stored."""
    trace = Trace.load(into / "trace")
    return Run(trace, both_sides.load(into / "recordings", 1 + len(trace.ranks)))


def to_json(one: Named, other: Named, found: Found, exact: bool) -> dict[str, Any]:
    """Return what was found, as report_schema.json describes it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "a": _side(one),
        "b": _side(other),
        "verdict": "equal" if found.first is None else "apart",
        "exact": exact,
        "factor": FACTOR,
        "first": found.first and found.first.to_json(),
        "first_bit": found.bit and found.bit.to_json(),
        "path": [place.to_json() for place in found.path],
        "compared": found.compared,
        "only_in_one": found.alone,
        "notes": found.notes,
    }


def _side(side: Named) -> dict[str, Any]:
    return {
        "words": side.words,
        "subject": side.subject,
        "stack": side.stack or "current",
        "preload": list(side.preload),
        "spec": side.spec.to_json(),
    }


def _show(one: Named, other: Named, found: Found, exact: bool) -> None:
    console = screen()

    def say(text: str, style: str = "") -> None:
        console.print(Text(text), style=style)

    for side in (one, other):
        differs = ", ".join(changes(side.spec.to_json())) or "the default run"
        stack = f", stack {side.stack}" if side.stack else ""
        preload = f", with {', '.join(side.preload)}" if side.preload else ""
        say(f"{side.where}: {side.subject}, {differs}{stack}{preload}")
    if found.first is None:
        say("equal" if found.bit is None else "equal, but for rounding", "green")
    else:
        say(f"apart at: {found.first.sentence()}", "red")
        say(f"  A and B: {found.first.seen()}")
    if found.bit is not None and found.bit is not found.first:
        say(f"first bit that differs: {found.bit.sentence()}\n  A and B: {found.bit.seen()}")
    if len(found.path) > 1:
        say("the difference after that:")
        console.print(_path(found))
    bits = "bit for bit" if exact or found.bit is None else "beyond rounding"
    say(f"{found.compared} tensors and numbers were compared {bits}")
    for note in found.notes:
        say(note)


def _path(found: Found) -> Table:
    table = Table("where", "difference", "of", "rounding explains", box=None, pad_edge=False)
    for place in _thinned(found):
        gap = place.distance
        table.add_row(place.sentence(), f"{gap.largest:.3g}", f"{gap.size:.3g}", f"{place.explained:.3g}")
    return table


def _thinned(found: Found) -> Iterator[Any]:
    """Yield the places after the first, each module and stage once."""
    seen = {(found.first.module, found.first.stage)} if found.first else set()
    for place in found.path[1:]:
        if (place.module, place.stage) not in seen and len(seen) <= _LINES:
            seen.add((place.module, place.stage))
            yield place
