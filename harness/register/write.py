"""Write the register's two files: the proofs that clauses can fail (PROOFS), and the page (PAGE)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from harness import contract
from harness.errors import UsageError
from harness.files import write_whole
from harness.paths import ROOT
from harness.register.entries import PAGE, PROOFS, entries
from harness.register.page import page

_COLLECT = "import json, tests.proofs; print(json.dumps(tests.proofs.collect()))"


def write() -> list[Path]:
    """Write PROOFS and PAGE from clauses, suites, expectations and tests. Return their paths.

    Raises UsageError outside a checkout, or if tests/ cannot be imported.
    """
    if not (ROOT / "tests" / "proofs.py").is_file():
        raise UsageError("clauses --write is for a checkout: this installation has no tests/, which name the faults")
    done = subprocess.run([sys.executable, "-c", _COLLECT], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UsageError(f"clauses --write: tests/ cannot be read ({done.stderr.strip().splitlines()[-1]})")
    texts = current(json.loads(done.stdout))
    for path, text in texts.items():
        write_whole(path, text)
    return list(texts)


def current(proofs: dict[str, list[dict[str, str]]]) -> dict[Path, str]:
    """Return the texts that PROOFS and PAGE must have, by path.

    proofs: the faults in tests/ under which a clause's checks fail, by clause id (tests/proofs.py).
    """
    ordered = {id: proofs[id] for id in contract.clauses() if id in proofs}
    return {PROOFS: json.dumps(ordered, indent=1) + "\n", PAGE: page(entries(ordered))}
