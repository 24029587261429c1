"""The laws that every completed run obeys, whatever its spec, by the clause that each judges."""

from __future__ import annotations

from collections.abc import Callable

from harness.laws import checkpoint, frozen
from harness.trace import Trace
from harness.verdict import Verdict

Law = Callable[[Trace], Verdict]


def laws_for(trace: Trace) -> dict[str, Law]:
    """Clause id -> law, for the laws that a run of this spec can be judged by."""
    laws: dict[str, Law] = {
        "FRZ-01": frozen.base_frozen,
        "FRZ-02": frozen.optimizer_holds_trainables,
        "FRZ-03": frozen.base_without_gradients,
    }
    if trace.spec.arguments.get("save_strategy") != "no":
        laws |= {"CKPT-25": checkpoint.adapter_only, "CKPT-04": checkpoint.size_law}
    return laws
