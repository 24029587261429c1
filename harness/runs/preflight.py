"""The plain run of somebody's subject, which is trained before any clause is judged.

If it cannot be trained, every case would fail for the same reason, and some would hold of nothing.
"""

from __future__ import annotations

from harness.errors import UsageError
from harness.runs.cache import Runs
from harness.runs.scenarios import PLAIN
from harness.subjects import unsupported


def refused(runs: Runs) -> str:
    """Train the plain run. Return in a sentence why nothing can be judged, "" if all is well."""
    name = runs.subject.name
    try:
        if (reason := unsupported(runs.subject, runs.on_device(PLAIN))) is not None:
            return f"{name} does not train the plain run ({reason}), so no clause is judged"
        trace = runs.train(PLAIN)
    except UsageError as error:
        return f"{error}; no clause is judged"
    if trace.error is not None:
        place = trace.raised
        at = f" (at {place['file']}:{place['line']})" if place.get("file") else ""
        words = trace.error.partition("\n")[0]
        return f"{name}: the plain run, which is trained first, ended with {words}{at}; no clause is judged"
    if not trace.steps:
        return f"{name}: the plain run made no optimizer step that was observed; no clause is judged"
    return ""
