"""The check that each law begins with: whether the run trained at all."""

from __future__ import annotations

from harness.trace import Trace

#: Exceptions with which upstream refuses a run in words. Any other is a fault.
REFUSALS = ("ValueError", "NotImplementedError")

#: What upstream says of a run that it does not support, with another exception than those, or not before it evaluates ->
#: the argument and the value that ask for it. None: it needs none. With the Trainer's own default, the sentences about
#: DDP are faults of the Trainer. dataloader_drop_last may leave nothing to evaluate, and so no eval_loss.
REFUSED_LATE: dict[str, tuple[str, bool] | None] = {
    "FSDP expects uniform original parameter dtype": None,
    "in `split_batches` mode, the batch size": None,
    "training argument is set to 'eval_loss', which is not found in the evaluation metrics": (
        "dataloader_drop_last",
        True,
    ),
    "parameters that were not used in producing loss": ("ddp_find_unused_parameters", False),
    "Expected to mark a variable ready only once": ("ddp_find_unused_parameters", True),
}


def refused_late(trace: Trace) -> bool:
    """Return whether a run ended with one of the sentences in `REFUSED_LATE`, at whatever step."""
    arguments = trace.spec.arguments
    return any(
        words in (trace.error or "") and (asked is None or arguments.get(asked[0]) == asked[1])
        for words, asked in REFUSED_LATE.items()
    )


def incomplete(trace: Trace) -> list[str]:
    """Return why a run cannot be judged: it ended with an error, or made no step. Return an empty list if it can be."""
    if trace.error is not None:
        return [f"the run ended with {trace.error}"]
    if not trace.steps and trace.output.get("global_step", 0) == 0:
        return ["the run made no optimizer step"]
    return []
