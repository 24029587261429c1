"""What each law asks of a trace before it looks further."""

from __future__ import annotations

from harness.trace import Trace


def incomplete(trace: Trace) -> list[str]:
    """Why a run is no evidence: it ended with an error, or made no step. Empty where it is."""
    if trace.error is not None:
        return [f"the run ended with {trace.error}"]
    if not trace.steps and trace.output.get("global_step", 0) == 0:
        return ["the run made no optimizer step"]
    return []
