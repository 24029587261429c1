"""Checkpoints that one stack wrote and another one reads: resumed, and loaded for inference."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.gate.findings import NOTE, Finding
from harness.gate.numbers import EQUAL, WITHIN
from harness.laws.completion import incomplete
from harness.laws.equal import differences, equal_runs
from harness.laws.resume import continues
from harness.tolerance import MERGED, STACKS
from harness.trace import Checkpoint, Trace
from harness.verdict import Verdict, verdict


def goes_on(resumed: Trace, whole: Trace, step: int, numbers: str) -> Verdict:
    """From the checkpoint at `step` a run goes on as the one that wrote it did, as far as the two stacks' numbers allow.

    numbers: how the stacks' uninterrupted runs part (`harness.gate.numbers`). Where they are other runs altogether, what
    was restored, the rows and the learning rates must still be the same.
    """
    if numbers == EQUAL:
        return continues(resumed, whole, step)
    if numbers == WITHIN:
        return equal_runs(resumed, whole, STACKS, after=step)
    findings = incomplete(resumed)
    if not findings:
        saved = whole.checkpoint(step).adapter
        findings += differences(resumed.adapter_resumed, saved, 0.0, f"after loading checkpoint-{step}:")[:1]
        ours = {one.number: one for one in resumed.steps if one.number > step}
        theirs = {one.number: one for one in whole.steps if one.number > step}
        if list(ours) != list(theirs):
            findings.append(f"makes the steps {list(ours)}, expected {list(theirs)}")
        for number, one in ours.items():
            other = theirs.get(number)
            if other is None:
                continue
            seen, wanted = ([row for batch in run.batches for row in batch.rows] for run in (one, other))
            if seen != wanted:
                findings.append(f"step {number}: trained rows {seen}, expected {wanted}")
            if one.learning_rates != other.learning_rates:
                findings.append(f"step {number}: learning rates {one.learning_rates}, expected {other.learning_rates}")
    return verdict("a resumed run restores the adapter and trains the rows that were left", findings[:3])


def computes(seen: Path, wanted: Path) -> Verdict:
    """Logits of an adapter as two stacks compute them."""
    from safetensors.torch import load_file

    found = differences(
        load_file(seen / "logits.safetensors"), load_file(wanted / "logits.safetensors"), MERGED.loss, "loaded:"
    )
    return verdict("the loaded adapter computes what it did where it was written", found)


def files(before: Mapping[str, Trace], after: Mapping[str, Trace]) -> list[Finding]:
    """How the last checkpoints of the same cells differ: files, their sizes, fields of adapter_config.json."""
    said: dict[str, list[str]] = defaultdict(list)
    for cell in before:
        if cell in after and before[cell].checkpoints and after[cell].checkpoints:
            for sentence in _differences(before[cell].checkpoints[-1], after[cell].checkpoints[-1]):
                said[sentence].append(cell)
    return [
        Finding("files", cells[0], NOTE, f"{sentence} (in {len(cells)} cell{'s' * (len(cells) > 1)})", {"cells": cells})
        for sentence, cells in sorted(said.items(), key=lambda item: -len(item[1]))
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
    # A set is written in the order in which it comes.
    return {
        name: sorted(value) if isinstance(value, list) else value
        for name, value in json.loads(file.read_text()).items()
    }
