"""The check that each law begins with: whether the run trained at all."""

from __future__ import annotations

from harness.trace import Trace

#: Exceptions with which upstream refuses a run in words. Any other is a fault.
REFUSALS = ("ValueError", "NotImplementedError")


def incomplete(trace: Trace) -> list[str]:
    """Return why a run cannot be judged: it ended with an error, or made no step. Return an empty list if it can be."""
    if trace.error is not None:
        return [f"the run ended with {trace.error}"]
    if not trace.steps and trace.output.get("global_step", 0) == 0:
        return ["the run made no optimizer step"]
    return []
