"""One line for the message of a failed case: where its runs part. It is trained only then, and for a few cases."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from harness import subjects
from harness.defaults import plain
from harness.spec import RunSpec
from harness.subjects import Subject
from harness.where import both_sides
from harness.where.both_sides import Side
from harness.where.timeline import Run

#: Cases of a process that get a line, and seconds that all of them may take together. A tiny case takes 1 to 3 s.
MOST, SECONDS = 3, 20.0

#: Turns the lines off in this process and in those that it starts.
OFF = "PEFT_HARNESS_NO_WHERE"

_spent: list[float] = []


def line(subject: Subject, specs: Sequence[RunSpec]) -> str:
    """Return where the runs of a failed case part; "" if it is not known.

    - specs: those of its runs, in their order. Two are compared with each other; one is compared with the reference.

    Runs of several ranks, on GPUs, or of large models are left out: they would take too long.
    """
    chosen = list(dict.fromkeys(specs))[:2]
    small = all(not s.launch.several and s.launch.device == "cpu" and s.model.path is None for s in chosen)
    if OFF in os.environ or not chosen or not small or len(_spent) >= MOST or sum(_spent) > SECONDS:
        return ""
    began = time.monotonic()
    try:
        return _line(subject, chosen)
    except Exception:  # a line of a message must not fail a case in another way
        return ""
    finally:
        _spent.append(time.monotonic() - began)


def _line(subject: Subject, specs: list[RunSpec]) -> str:
    who = [(subject, spec) for spec in specs]
    if len(who) == 1:
        reference, spec = subjects.load("reference"), plain(specs[0])
        if subject.name == reference.name or reference.unsupported(spec):
            return ""
        who.append((reference, spec))
    with tempfile.TemporaryDirectory() as temporary:
        ours, theirs = [_side(one, spec, Path(temporary, str(index))) for index, (one, spec) in enumerate(who)]
        found = both_sides.find(ours, theirs)
    if found.first is None:
        return ""
    other = "the reference" if len(specs) == 1 else "its other run"
    return f"{found.first.sentence()}; compared with {other}: {found.first.seen()}"


def _side(subject: Subject, spec: RunSpec, directory: Path) -> Side:
    def record(seed: int | None) -> Run:
        into = directory / str(seed)
        into.mkdir(parents=True)
        with contextlib.redirect_stdout(io.StringIO()):
            return both_sides.record(subject, spec, into, seed)

    return Side(subject.name, spec, record)
