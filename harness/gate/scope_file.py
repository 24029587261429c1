"""Read --scope: the table [tool.peft-harness] of a pyproject.toml, or a TOML file that has its keys alone.

    [tool.peft-harness]
    subject = "hf-trainer"
    device = "cpu"
    routes = ["get_peft_model"]
    methods = ["lora", "dora"]
    launches = ["single", "ddp"]
    clauses = ["LOSS-*", "ACC-*", "CKPT-*"]
    specs = ["runs/mine.json"]
    known-defects = ["known-defects.toml"]
    margins = { throughput = 0.05, memory = 0.1 }

Every key may be missing. Paths start at the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import contract, subjects
from harness.errors import UsageError
from harness.reading import parse_toml, read_text, shown, shown_path
from harness.session import concerns
from harness.session.concerns import Concerns, unknown

_TEXTS = ("subject", "device")
_LISTS = ("routes", "methods", "launches", "clauses", "specs", "known-defects")
_KEYS = (*_TEXTS, *_LISTS, "margins")

#: Name of a margin -> the least that it may be, a share. What is measured has more noise than a smaller one.
_MARGINS = {"throughput": 0.005, "memory": 0.0}


@dataclass(frozen=True)
class ScopeFile:
    """What a scope says.

    - where: what messages call it.
    - subject, device: "" if it does not say.
    - clauses: globs.
    - specs, known_defects: files.
    - slower, larger: the shares by which a step may get slower, and its memory grow; None for the gate's own.
    """

    where: str
    subject: str
    device: str
    concerns: Concerns
    clauses: tuple[str, ...]
    specs: tuple[Path, ...]
    known_defects: tuple[Path, ...]
    slower: float | None
    larger: float | None


def read(path: Path) -> ScopeFile:
    """Read a scope. UsageError says in one sentence what is wrong, with the nearest known name."""
    where = shown_path(path)
    table = _table(path, where)
    for key in table:
        if key not in _KEYS:
            raise unknown(where, key, _KEYS)
    for key in _TEXTS:
        if not isinstance(table.get(key, ""), str):
            raise UsageError(f"{where}: {key} is {shown(table[key])}; expected a text")
    lists = {key: _list(table, key, where) for key in _LISTS}
    chosen = concerns.read(lists["routes"], lists["methods"], lists["launches"], f"{where}: {{}}")
    _check_clauses(lists["clauses"], where)
    subject, device = table.get("subject", ""), table.get("device", "")
    if subject and ":" not in subject and subject not in subjects.NAMES:
        raise unknown(f"{where}: subject", subject, subjects.NAMES)
    if device and device not in ("cpu", "cuda"):
        raise unknown(f"{where}: device", device, ("cpu", "cuda"))
    margins = _margins(table.get("margins", {}), where)
    files = {key: tuple(path.parent / name for name in lists[key]) for key in ("specs", "known-defects")}
    for key, found in files.items():
        for file in found:
            if not file.is_file():
                raise UsageError(f"{where}: {key}: {shown_path(file)}: no such file")
    return ScopeFile(
        where, subject, device, chosen, lists["clauses"], files["specs"], files["known-defects"],
        margins.get("throughput"), margins.get("memory"),
    )  # fmt: skip


def _table(path: Path, where: str) -> dict[str, Any]:
    body = parse_toml(read_text(path), where)
    tools = body.get("tool")
    if isinstance(tools, dict) and isinstance(tools.get("peft-harness"), dict):
        table: dict[str, Any] = tools["peft-harness"]
        return table
    if path.name == "pyproject.toml" or "tool" in body:
        raise UsageError(f"{where}: has no table [tool.peft-harness]; write one, or name another file")
    return body


def _list(table: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise UsageError(f"{where}: {key} is {shown(value)}; expected a list of texts")
    if key in table and not value:
        raise UsageError(f"{where}: {key} is empty, so that nothing would be judged; leave it out for all")
    return tuple(value)


def _check_clauses(globs: tuple[str, ...], where: str) -> None:
    for glob in globs:
        try:
            contract.select([glob])
        except UsageError:
            known = [*contract.clauses(), *(f"{chapter.id}-*" for chapter in contract.chapters())]
            raise unknown(f"{where}: clauses", glob, known) from None


def _margins(value: Any, where: str) -> dict[str, float]:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: margins is {shown(value)}; expected a table such as {{ throughput = 0.05 }}")
    for name, share in value.items():
        if name not in _MARGINS:
            raise unknown(f"{where}: margins", name, _MARGINS)
        number = isinstance(share, (int, float)) and not isinstance(share, bool) and math.isfinite(share)
        if not number or not _MARGINS[name] <= share <= 1:
            raise UsageError(
                f"{where}: margins: {name} is {shown(share)}; expected a share from {_MARGINS[name]} to 1, such as 0.05"
            )
    return {name: float(share) for name, share in value.items()}
