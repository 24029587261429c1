"""Sentences by which torch, accelerate and the Trainer refuse what a user asked for: a fault if the user did not."""

import pytest

from harness.runs.judging import is_refused
from harness.runs.sweep import Refusal
from tests.traces import made_up

UNUSED = "RuntimeError: Your module has parameters that were not used in producing loss. You can"
TWICE = "rank 1 of 2: RuntimeError: Expected to mark a variable ready only once. This error"
SPLIT = (
    "ValueError: To use a `DataLoader` in `split_batches` mode, the batch size (3) needs to be a round multiple of the"
)
NO_LOSS = "KeyError: \"The `x` training argument is set to 'eval_loss', which is not found in the evaluation metrics."
DTYPES = "AssertionError: FSDP expects uniform original parameter dtype but got two"


@pytest.mark.parametrize(
    ("error", "asked", "refused"),
    [
        (UNUSED, False, True),
        (UNUSED, True, False),
        (UNUSED, None, False),
        (TWICE, True, True),
        (TWICE, False, False),
        (TWICE, None, False),
        (DTYPES, None, True),
        (SPLIT, None, True),
        ("RuntimeError: another", False, False),
    ],
)
def test_only_what_the_user_asked_for_is_refused(error, asked, refused):
    trace = made_up()
    trace.spec = trace.spec.but(ddp_find_unused_parameters=asked)
    trace.error = error
    trace.events = ["train_begin", "step_begin", "step_end", "step_begin"]
    assert is_refused(trace) is refused


@pytest.mark.parametrize("dropped", [True, False])
def test_a_metric_that_nothing_was_left_to_evaluate_for_is_refused(dropped):
    trace = made_up()
    trace.spec = trace.spec.but(dataloader_drop_last=dropped)
    trace.error = NO_LOSS
    trace.events = ["train_begin", "step_begin", "step_end", "evaluate"]
    assert is_refused(trace) is dropped


def test_a_sentence_of_torch_is_no_crash():
    assert not Refusal({}, f"the run: upstream refuses it: {DTYPES}").crash
