"""The check that each law begins with: whether the run trained at all."""

from __future__ import annotations

from harness.trace import Trace

#: Exceptions with which upstream refuses a run in words. Any other is a fault.
REFUSALS = ("ValueError", "NotImplementedError")

#: What torch says of a run that it does not support, with another exception than those -> the argument and the value that
#: ask for it. None: it needs none. With the Trainer's own default, the second and the third are faults of the Trainer.
REFUSED_BY_TORCH: dict[str, tuple[str, bool] | None] = {
    "FSDP expects uniform original parameter dtype": None,
    "parameters that were not used in producing loss": ("ddp_find_unused_parameters", False),
    "Expected to mark a variable ready only once": ("ddp_find_unused_parameters", True),
}


def torch_refuses(trace: Trace) -> bool:
    """Return whether a run ended with one of torch's sentences in `REFUSED_BY_TORCH`, at whatever step."""
    arguments = trace.spec.arguments
    return any(
        words in (trace.error or "") and (asked is None or arguments.get(asked[0]) == asked[1])
        for words, asked in REFUSED_BY_TORCH.items()
    )


def incomplete(trace: Trace) -> list[str]:
    """Return why a run cannot be judged: it ended with an error, or made no step. Return an empty list if it can be."""
    if trace.error is not None:
        return [f"the run ended with {trace.error}"]
    if not trace.steps and trace.output.get("global_step", 0) == 0:
        return ["the run made no optimizer step"]
    return []
