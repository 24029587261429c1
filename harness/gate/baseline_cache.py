"""What the suites said of a stack, kept for later gates that have it as their baseline.

Kept is what held, was skipped, or is a known defect. What failed otherwise is judged anew each time: it may have been the
machine, and a failure that stays would hide the fault of a candidate. So is the whole candidate.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from harness import environment
from harness.files import write_whole
from harness.gate.environments import CURRENT, Environment
from harness.gate.scope import Scope
from harness.paths import FIXTURES, PACKAGE, SUITES, cache_directory
from harness.session import journal
from harness.verdict import KNOWN_DEFECT, NOT_COMPARABLE, PASS, SKIPPED

_STAYS = (PASS, SKIPPED, KNOWN_DEFECT, NOT_COMPARABLE)


def place(stack: Environment, judged: Scope) -> Path | None:
    """The file for a stack, a machine and this harness's code; None where more than these decides what the suites say.

    That is so for an environment that was not made from releases, code of the user's own, and GPUs.
    """
    own = judged.preloads or ":" in judged.subject
    if stack.asked == CURRENT or " @ " in stack.lock or own or judged.device != "cpu":
        return None
    machine = environment.describe(), sorted(environment.cpu_flags())
    return cache_directory() / "judged" / f"{identity(stack.key, judged, machine)}.jsonl"


def keep(cases: Path, file: Path) -> None:
    """Keep what stays of a journal's cases."""
    run, ended = journal.read(cases)
    anew = {case.nodeid for case in ended if case.verdict not in _STAYS}
    lines = [{"run": run}, *(asdict(case) for case in ended if case.nodeid not in anew)]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, "".join(json.dumps(line) + "\n" for line in lines))


def since(file: Path) -> str:
    """The day on which a file was kept; empty where there is none."""
    if not file.is_file():
        return ""
    return datetime.fromtimestamp(file.stat().st_mtime).date().isoformat()


def identity(*parts: Any) -> str:
    """Equal for gates that would find the same: the same sides, options and code of the harness."""
    return hashlib.sha256(f"{_code()} {parts!r}".encode()).hexdigest()[:16]


@functools.cache
def _code() -> str:
    digest = hashlib.sha256()
    for folder in (PACKAGE, SUITES, FIXTURES):
        for file in sorted(folder.rglob("*")):
            if file.suffix in (".py", ".toml", ".json"):
                digest.update(file.read_bytes())
    return digest.hexdigest()
