"""Compare the checkpoints of two stacks: written by one, then resumed or loaded for inference by the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.gate.findings import NOTE, Finding
from harness.gate.numbers import EQUAL, WITHIN
from harness.laws.completion import incomplete
from harness.laws.equal import differences, equal_runs
from harness.laws.resume import continues
from harness.reading import read_json
from harness.tolerance import MERGED, STACKS
from harness.trace import Checkpoint, Trace
from harness.verdict import Verdict, verdict


def goes_on(resumed: Trace, whole: Trace, step: int, numbers: str) -> Verdict:
    """Judge whether a resumed run continues like the run that wrote its checkpoint.

    - resumed: the run that was resumed from the checkpoint at `step`.
    - whole: the uninterrupted run that wrote the checkpoint.
    - numbers: how the two stacks' uninterrupted runs differ (`harness.gate.numbers`). If it is CHANGED, only the restored
      adapter, the rows and the learning rates are compared.
    """
    if numbers == EQUAL:
        return continues(resumed, whole, step)
    if numbers == WITHIN:
        return equal_runs(resumed, whole, STACKS, after=step)
    findings = incomplete(resumed)
    if not findings:
        saved = whole.checkpoint(step).adapter
        findings += differences(resumed.adapter_resumed, saved, 0.0, f"after loading checkpoint-{step}:")[:1]
        steps = {made.number: made for made in resumed.steps if made.number > step}
        expected = {made.number: made for made in whole.steps if made.number > step}
        if list(steps) != list(expected):
            findings.append(f"makes the steps {list(steps)}, expected {list(expected)}")
        for number in sorted(steps.keys() & expected.keys()):
            ours, theirs = steps[number], expected[number]
            rows, expected_rows = ([row for batch in made.batches for row in batch.rows] for made in (ours, theirs))
            if rows != expected_rows:
                findings.append(f"step {number}: trained rows {rows}, expected {expected_rows}")
            if ours.learning_rates != theirs.learning_rates:
                findings.append(
                    f"step {number}: learning rates {ours.learning_rates}, expected {theirs.learning_rates}"
                )
    return verdict("a resumed run restores the adapter and trains the rows that were left", findings[:3])


def computes(found: Path, expected: Path) -> Verdict:
    """Compare the logits of an adapter as two stacks compute them. Parameters: directories with a logits.safetensors."""
    from safetensors.torch import load_file

    ours, theirs = (load_file(directory / "logits.safetensors") for directory in (found, expected))
    return verdict(
        "the loaded adapter computes what it did where it was written",
        differences(ours, theirs, MERGED.loss, "loaded:"),
    )


def files(before: Mapping[str, Trace], after: Mapping[str, Trace]) -> list[Finding]:
    """Return how the last checkpoints of the same cells differ: files, their sizes, fields of adapter_config.json.

    Cells with the same difference share one finding.
    """
    cells_of: dict[str, list[str]] = defaultdict(list)
    for cell in before:
        if cell in after and before[cell].checkpoints and after[cell].checkpoints:
            for sentence in _differences(before[cell].checkpoints[-1], after[cell].checkpoints[-1]):
                cells_of[sentence].append(cell)
    return [
        Finding("files", cells[0], NOTE, f"{sentence} (in {len(cells)} cell{'s' * (len(cells) > 1)})", {"cells": cells})
        for sentence, cells in sorted(cells_of.items(), key=lambda item: -len(item[1]))
    ]


def _differences(old: Checkpoint, new: Checkpoint) -> list[str]:
    found = []
    for file in sorted({*old.files, *new.files}):
        a, b = old.files.get(file), new.files.get(file)
        if a is None or b is None:
            found.append(f"{file} is {'new' if a is None else 'gone'}")
        elif a != b and file.endswith(".safetensors"):
            found.append(f"{file}: {a:,} bytes became {b:,}")
    was, now = _config(old), _config(new)
    for name in sorted({*was, *now} - {"peft_version"}):
        if was.get(name, _GONE) != now.get(name, _GONE):
            found.append(f"adapter_config.json, {name}: {was.get(name, _GONE)} became {now.get(name, _GONE)}")
    return found


_GONE = "absent"


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    file = next(iter(sorted(Path(checkpoint.path).rglob("adapter_config.json"))), None)
    if file is None:
        return {}
    try:
        fields = read_json(file, nan=True)
    except UsageError as error:
        return {"all fields": str(error)}
    if not isinstance(fields, dict):
        return {"all fields": "no JSON object"}
    # peft writes a set in arbitrary order.
    return {name: sorted(value, key=str) if isinstance(value, list) else value for name, value in fields.items()}
