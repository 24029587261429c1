"""The command `peft-harness adapter`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from harness.checkpoints import adapter_directory, whole
from harness.checkpoints.adapter_directory import FOREIGN, TORN, WHOLE, Adapter
from harness.checkpoints.choose import newest_beside
from harness.errors import UsageError
from harness.files import write_whole
from harness.fixtures import pretrained
from harness.processes.imports import import_upstream
from harness.progress import Progress, screen
from harness.reading import shown_path
from harness.serving import effect, servers
from harness.serving.effect import Effect
from harness.words import counted

SCHEMA_VERSION = 1

#: The exit code of each verdict. A foreign directory is a UsageError, whose code is 2.
CODES = {WHOLE: 0, TORN: 1}


def run(path: Path, model: Path | None, tokens: Path | None, json_file: Path | None) -> int:
    """Look at an adapter's directory, print the sections, and write them. Return the exit code of its verdict.

    Raises UsageError for a directory without an adapter, and for one, a base or tokens that cannot be read.
    """
    if tokens is not None and model is None:
        raise UsageError("--tokens is for the effect on a base's logits; name the base with --model")
    adapter = adapter_directory.read(path)
    if model is not None:
        pretrained.check(model)
    measured, answers = None, []
    if adapter.verdict == WHOLE:
        if model is not None:
            import_upstream(threads=0)
        with Progress() as progress:
            whole.check(adapter, model, progress.add("tensors", len(adapter.tensors)))
            if model is not None and adapter.verdict == WHOLE:
                task = progress.add("effect", 1 + len(effect.WAYS))
                measured = effect.measure(adapter, model, tokens, lambda way: task.advance(1, way))
    if adapter.verdict == WHOLE:
        answers = servers.judge(adapter)
    if adapter.verdict != FOREIGN:
        _show(adapter, answers, measured)
    if json_file is not None:
        write_whole(json_file, json.dumps(to_json(adapter, answers, measured), indent=1) + "\n")
    if adapter.verdict == FOREIGN:
        unread = [f"{one.file} is {one.why}" for one in adapter.files if one.state == "not read"]
        raise UsageError(
            f"{shown_path(adapter.path)}: no adapter that can be read: {'; '.join(unread + adapter.notes)}"
        )
    return CODES[adapter.verdict]


def to_json(adapter: Adapter, answers: list[servers.Answer], measured: Effect | None) -> dict[str, Any]:
    """Return the three sections, as adapter_schema.json describes them."""
    return {
        "schema_version": SCHEMA_VERSION,
        "file": {
            "directory": str(adapter.path),
            "verdict": adapter.verdict,
            "files": [vars(one) for one in adapter.files],
            "notes": adapter.notes,
            "use": newest_beside(adapter.path),
        },
        "servers": [answer.to_json() for answer in answers],
        "effect": None if measured is None else measured.to_json(),
    }


def _show(adapter: Adapter, answers: list[servers.Answer], measured: Effect | None) -> None:
    console = screen()
    where = shown_path(adapter.path)
    kind = (
        f"{adapter.peft_type} {counted(len(adapter.tensors), 'tensor')}".strip()
        if adapter.tensors
        else "no tensors read"
    )
    console.print(Text(f"{adapter.verdict}: {where} ({kind})"), style={WHOLE: "green"}.get(adapter.verdict, "red"))
    for one in adapter.files:
        if one.state != WHOLE:
            console.print(Text(f"  {one.file} is {one.state}: {'it ' if one.state == TORN else ''}{one.why}"))
    for note in adapter.notes:
        console.print(Text(f"  {note}"))
    if adapter.verdict != WHOLE:
        console.print(Text("not judged: which servers take it, and what is left of its effect"))
        return
    console.print()
    for answer in answers:
        console.print(Text(f"{answer.server}: {_ANSWERS[answer.takes]}"))
        for said in answer.why:
            console.print(Text(f"  {said['sentence']}\n    {said['source']}"))
        for said in answer.needs:
            console.print(Text(f"  start it with {said['sentence']}\n    {said['source']}"))
        console.print(Text(f"  not judged: {answer.not_judged}"))
    console.print()
    if measured is None:
        console.print(Text("not judged: what is left of its effect in lower precision; name the base with --model"))
        return
    _show_effect(console, measured)


_ANSWERS = {
    servers.YES: "takes it",
    servers.REFUSES: "does not take it",
    servers.WRONGLY: "loads it, and computes something else",
    servers.DEPENDS: "it depends",
}


def _show_effect(console: Any, measured: Effect) -> None:
    console.print(
        Text(f"effect on the logits, of {measured.tokens}; in float32 {measured.size:.3g} (root mean square)")
    )
    if measured.note:
        console.print(Text(f"  {measured.note}"))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("served in", "share of the effect that is left", "rounding beside it"):
        table.add_column(name, justify="left" if name == "served in" else "right")
    for left in measured.ways:
        if left.share is None:
            table.add_row(Text(left.way), "not finite", "not finite")
        else:
            table.add_row(Text(left.way), f"{left.share:.0%} ± {left.uncertainty:.0%}", f"{left.rounding:.0%}")
    console.print(table)
