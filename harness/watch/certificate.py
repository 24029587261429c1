"""The certificate of a run: what was checked, how often, and what was not. As JSON, and as a text of about ten lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import environment
from harness.files import write_whole
from harness.verdict import spelled
from harness.watch.book import CHECKS, Book
from harness.words import counted, one_line

if TYPE_CHECKING:
    from harness.watch.run import Run

SCHEMA_VERSION = 1

#: Characters of a sentence in the text. The JSON has all of it.
_WIDTH = 160


def of(run: Run | None, failure: str = "") -> dict[str, Any]:
    """Return the certificate of a run as certificate_schema.json describes it.

    - failure: why Watch itself gave up, if it did.
    """
    book = run.book if run else Book()
    seen = run.seen if run else None
    seconds = run.seconds if run else 0.0
    return {
        "schema_version": SCHEMA_VERSION,
        "watch": _verdict(book, failure),
        "environment": environment.describe(),
        "steps": {
            "made": seen.begun if seen else 0,
            "last": seen.number if seen else 0,
            "sampled": len(run.sampled_steps) if run else 0,
            "every": run.asked if run else None,
        },
        "ranks": {"rank": seen.rank if seen else 0, "world": seen.world if seen else 1},
        "adapters": list(seen.adapters) if seen else [],
        "seconds": {"run": seconds, "watch": run.own_seconds if run else 0.0},
        "failure": failure,
        "checks": [
            {
                "check": name,
                "says": says,
                "verdict": entry.verdict,
                "judged": entry.judged,
                "steps": entry.steps,
                "broken": entry.broken,
                "findings": [{"step": f.step, "sentence": f.sentence} for f in entry.findings],
                "not_judged": [{"reason": reason, "times": times} for reason, times in entry.reasons.items()],
            }
            for name, says in CHECKS.items()
            for entry in [book.entries[name]]
        ],
    }


def _verdict(book: Book, failure: str) -> str:
    if any(entry.broken for entry in book.entries.values()):
        return "fails"
    if failure or not any(entry.judged for entry in book.entries.values()):
        return "not judged"
    return "holds"


def text(made: dict[str, Any]) -> str:
    """Return a certificate as a text of about ten lines."""
    steps, checks = made["steps"], made["checks"]
    holds = [check for check in checks if check["verdict"] == "holds"]
    fails = [check for check in checks if check["verdict"] == "fails"]
    idle = [check for check in checks if check["verdict"] == "not judged"]
    share = made["seconds"]["watch"] / made["seconds"]["run"] if made["seconds"]["run"] else 0.0
    lines = [
        f"Watch: {made['watch'].upper()}. {counted(steps['made'], 'step')}, {steps['sampled']} of them sampled; "
        f"{len(holds)} checks hold, {len(fails)} fail, {len(idle)} were not judged."
    ]
    if made["failure"]:
        lines.append(f"  not judged: {made['failure']}")
    for check in fails[:4]:
        first = check["findings"][0]
        lines.append(_cut(f"  fails  {check['check']}, step {first['step']}: {first['sentence']}"))
    if len(fails) > 4:
        lines.append(_cut(f"  fails  also: {', '.join(check['check'] for check in fails[4:])}"))
    lines.append(_list("  holds  ", [f"{check['check']} {check['judged']}" for check in holds]))
    groups: dict[str, list[str]] = {}
    for check in idle:
        reason = check["not_judged"][0]["reason"] if check["not_judged"] else "nothing to judge came"
        groups.setdefault(reason, []).append(check["check"])
    for reason, which in list(groups.items())[:4]:
        lines.append(_cut(f"  not judged  {', '.join(which)}: {reason}"))
    if len(groups) > 4:
        rest = [name for which in list(groups.values())[4:] for name in which]
        lines.append(_cut(f"  not judged  also: {', '.join(rest)}"))
    lines.append(f"  Watch took {made['seconds']['watch']:.2f} s of {made['seconds']['run']:.1f} s ({share:.1%}).")
    return "\n".join(lines)


def _list(start: str, parts: list[str]) -> str:
    return start + (", ".join(parts) or "nothing")


def _cut(line: str) -> str:
    line = f"  {one_line(line.strip())}"
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..."


def write(made: dict[str, Any], path: Path) -> None:
    """Write a certificate as JSON. The file is there whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(spelled(made), indent=1) + "\n")
