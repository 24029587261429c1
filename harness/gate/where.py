"""`peft-harness where` for sides that are trained in stacks of their own: each in a worker of its environment."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from harness.errors import UsageError
from harness.gate import command
from harness.gate.scope import Scope
from harness.gate.side import Side
from harness.where import both_sides
from harness.where import command as here
from harness.where.sides import Named
from harness.where.timeline import Run


def where(one: Named, other: Named, exact: bool, steps: int, json_file: Path | None, judged: Scope) -> int:
    """Find where two sides part, of which at least one has a stack. Parameters and exit code as for `here.where`.

    - judged: what --env and --build allow.

    Raises UsageError if a stack cannot be made.
    """
    stacks = list(dict.fromkeys(side.stack for side in (one, other) if side.stack))
    command.check_inputs(stacks, json_file)
    environments = dict(zip(stacks, command.made(stacks, judged), strict=True))
    open_sides: list[Side] = []

    def make(side: Named, directory: Path) -> both_sides.Record:
        if not side.stack:
            return here.in_forks(side, directory, steps)
        scope = dataclasses.replace(judged, subject=side.subject, preloads=side.preload)
        worker = Side(side.where, environments[side.stack], directory, scope)
        open_sides.append(worker)

        def record(seed: int | None) -> Run:
            into = f"seed-{seed}"
            spec = side.spec.to_json()
            answer = worker.ask(into, "record", spec=spec, into=into, subject=side.subject, seed=seed, steps=steps)
            said = answer["error"] or (answer["data"] or {}).get("unsupported")
            if said:
                raise UsageError(f"{side.where}, {side.words!r}: could not be trained: {said}")
            return here.stored(directory / into)

        return record

    try:
        return here.where(one, other, exact, json_file, make)
    finally:
        for side in open_sides:
            side.end()
