"""The cache of baseline results: what the suites said of a stack, for later gates that have it as their baseline.

Cached are the cases that held, were skipped, or are a known defect. A case that failed is judged again each time: the
machine may have been the cause, and a cached failure would hide the same failure of the candidate. The candidate is never
read from the cache.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from harness import environment, patches
from harness.errors import UsageError
from harness.files import write_whole
from harness.gate import stored
from harness.gate.environments import Environment
from harness.gate.requirements import CURRENT
from harness.gate.scope import Scope
from harness.paths import FIXTURES, PACKAGE, SUITES, cache_directory
from harness.reading import read_text
from harness.session import journal
from harness.verdict import KNOWN_DEFECT, NOT_COMPARABLE, PASS, SKIPPED

#: Bytes of a cached result. One of the whole suites has 2 MB.
_LIMIT = 64 * 2**20

_CACHED_VERDICTS = (PASS, SKIPPED, KNOWN_DEFECT, NOT_COMPARABLE)


def file_for(stack: Environment, judged: Scope) -> Path | None:
    """Return the cache file for a stack on this machine, with this harness's code.

    None if something else decides the verdicts too: an environment that was not made from releases, the user's own
    subject or preloads, or a GPU.
    """
    own_code = judged.preloads or ":" in judged.subject
    if stack.asked == CURRENT or " @ " in stack.lock or own_code or judged.device != "cpu":
        return None
    machine = environment.describe(), sorted(environment.cpu_flags())
    return cache_directory() / "judged" / f"{identity(stack.key, judged, machine)}.jsonl"


def store(cases: Path, file: Path) -> None:
    """Write to a cache file the cases of a journal that need not be judged again.

    A test with several cases is stored only if all of them qualify, because it is run as a whole.
    """
    run, ended = journal.read(cases)
    again = {case.nodeid for case in ended if case.verdict not in _CACHED_VERDICTS or case.refused}
    lines = [{"run": run}, *(asdict(case) for case in ended if case.nodeid not in again)]
    write_whole(file, stored.line(lines))


def cached_since(file: Path) -> str:
    """Return the date of a cache file, as YYYY-MM-DD. Empty if there is no such file, or one that is damaged."""
    if not os.path.lexists(file):
        return ""
    if load(file) is None:
        return ""
    return datetime.fromtimestamp(file.stat().st_mtime).date().isoformat()


def copy(file: Path, journal: Path) -> bool:
    """Write the cases of a cache file to a new journal. Returns False if the file was damaged meanwhile."""
    lines = load(file)
    if lines is not None:
        write_whole(journal, "".join(json.dumps(line) + "\n" for line in lines))
    return lines is not None


def load(file: Path) -> list[Any] | None:
    """Return the values in a cached result. None, and a sentence on stderr, if it was cut off or edited."""
    try:
        lines = stored.read(read_text(file, _LIMIT).rstrip("\n"))
        if isinstance(lines, list):
            return lines
        reason = "damaged, or of another release"
    except UsageError as error:
        reason = str(error)
    print(f"peft-harness: cached result {file.name} is not used ({reason}); it is judged again", file=sys.stderr)
    return None


def identity(*parts: Any) -> str:
    """Return a hash that is equal for equal parts under the same code of the harness, the suites and the fixtures.

    Results of a patched stack are not reused for an unpatched one (`harness.patches`).
    """
    return hashlib.sha256(f"{_code()} {patches.names()} {parts!r}".encode()).hexdigest()[:16]


@functools.cache
def _code() -> str:
    digest = hashlib.sha256()
    for folder in (PACKAGE, SUITES, FIXTURES):
        for file in sorted(folder.rglob("*")):
            # The table of many stacks, and what makes it, decide no verdict.
            if file.relative_to(folder).parts[0] == "map":
                continue
            if file.suffix in (".py", ".toml", ".json"):
                digest.update(file.read_bytes())
    return digest.hexdigest()
