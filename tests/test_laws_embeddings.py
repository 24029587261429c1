"""Tests of harness/laws/embeddings.py on made-up traces: layers saved, frozen, trained and tied, and each fault named."""

import pytest
import torch
from safetensors.torch import save_file

from harness.laws import embeddings
from harness.subjects.observer import digest, inspect_checkpoint
from tests.checkpoints import says
from tests.traces import A, B, made_up, with_checkpoint

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WEIGHT = torch.arange(8.0).reshape(4, 2)
SHAPES = {A: [2, 4], B: [4, 2]}


def with_layers(directory, saved=None, **changes):
    """Return a trace whose frozen embedding and output layer are one matrix, and whose checkpoint holds both.

    - saved: other tensors for the checkpoint.
    - changes: attributes of the trace to set.
    """
    frozen = {EMBEDDINGS: digest(WEIGHT), HEAD: digest(WEIGHT)}
    trace = made_up(**{"base_before": dict(frozen), "base": dict(frozen), **changes})
    return with_checkpoint(
        trace, directory, 2, {**trace.adapter, EMBEDDINGS: WEIGHT.clone(), HEAD: WEIGHT.clone(), **(saved or {})}
    )


# ---- tensors_saved ----


def test_the_expected_tensors_are_saved(tmp_path):
    assert embeddings.tensors_saved(with_checkpoint(made_up(), tmp_path, 2), SHAPES).holds


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({A: torch.ones(2, 4)}, f"checkpoint-2/adapter_model.safetensors: no {B}"),
        ({A: torch.ones(2, 4), B: torch.ones(4, 1)}, f"{B} is [4, 1], expected [4, 2]"),
        ({A: torch.ones(2, 4), B: torch.ones(4, 2).half()}, f"{B} is F16, expected F32"),
        ({A: torch.ones(2, 4), B: torch.ones(4, 2), HEAD: WEIGHT}, f"{HEAD} is saved, unexpected"),
    ],
)
def test_other_tensors_are_named(adapter, words, tmp_path):
    says(embeddings.tensors_saved(with_checkpoint(made_up(), tmp_path, 2, adapter), SHAPES), words)


def test_a_run_that_saved_nothing_proves_nothing(tmp_path):
    says(embeddings.tensors_saved(made_up(), SHAPES), "no checkpoint was written")
    trace = with_checkpoint(made_up(), tmp_path, 2)
    (tmp_path / "checkpoint-2" / "adapter_model.safetensors").unlink()
    trace.checkpoints = [inspect_checkpoint(tmp_path / "checkpoint-2", "default")]
    says(embeddings.tensors_saved(trace, SHAPES), "checkpoint-2: no adapter file")


# ---- saved_whole, restored, reloaded ----

WHOLE = {EMBEDDINGS: [4, 2], HEAD: [4, 2]}


def test_frozen_layers_are_saved_whole(tmp_path):
    assert embeddings.saved_whole(with_layers(tmp_path), WHOLE).holds


def test_a_layer_that_is_not_saved_whole_is_named(tmp_path):
    says(embeddings.saved_whole(with_checkpoint(made_up(), tmp_path, 2), WHOLE), f"safetensors: no {EMBEDDINGS}")
    shorter = with_layers(tmp_path / "shorter", {HEAD: WEIGHT[:3].clone()})
    says(embeddings.saved_whole(shorter, WHOLE), f"{HEAD} is [3, 2], expected [4, 2]")
    changed = with_layers(tmp_path / "changed", {HEAD: WEIGHT + 1})
    says(embeddings.saved_whole(changed, WHOLE), f"checkpoint-2: {HEAD} has other values than in the model")


def test_a_second_adapter_without_the_layers_is_named(tmp_path):
    with_layers(tmp_path)
    second = tmp_path / "checkpoint-2" / "second"
    second.mkdir()
    save_file({f"base_model.model.{A}": torch.ones(2, 4)}, second / "adapter_model.safetensors")
    trace = made_up()
    trace.checkpoints = [inspect_checkpoint(tmp_path / "checkpoint-2", "default")]
    says(embeddings.saved_whole(trace, WHOLE), f"checkpoint-2/second/adapter_model.safetensors: no {EMBEDDINGS}")


def test_resuming_restores_layers_that_were_other_ones():
    first, resumed = (
        made_up(base_before={HEAD: "1"}, base={HEAD: "1"}),
        made_up(base_before={HEAD: "2"}, base={HEAD: "1"}),
    )
    assert embeddings.restored(resumed, first, [HEAD]).holds
    says(embeddings.restored(first, first, [HEAD]), "so nothing could be restored")
    resumed.base[HEAD] = "2"
    says(embeddings.restored(resumed, first, [HEAD]), f"{HEAD} is not what it was")


def test_reloading_restores_frozen_and_trained_layers():
    trace = made_up(base={HEAD: digest(WEIGHT)})
    state = {f"base_model.model.{HEAD}": WEIGHT, f"base_model.model.{A}": trace.adapter[A]}
    assert embeddings.reloaded(state, trace, [HEAD, A]).holds
    says(embeddings.reloaded({**state, f"base_model.model.{HEAD}": WEIGHT + 1}, trace, [HEAD]), f"{HEAD} is not what")
    says(embeddings.reloaded({}, trace, [HEAD]), f"{HEAD} is not in the reloaded model")
    says(embeddings.reloaded(state, made_up(), [HEAD]), f"{HEAD} is not in the trained model")


# ---- moved, tied, warned ----


def test_what_was_trained_has_moved_and_what_was_frozen_has_not():
    trace = made_up(base_before={HEAD: "1"}, base={HEAD: "1"})
    assert embeddings.moved(trace, trained=[A, B], frozen=[HEAD]).holds
    says(embeddings.moved(trace, trained=[HEAD]), f"{HEAD} is what it was before training")
    says(embeddings.moved(trace, frozen=[A]), f"{A} is not what it was before training")
    says(embeddings.moved(trace, frozen=["nobody"]), "nobody is not in the model")


def test_two_names_of_one_tensor_are_tied_before_and_after():
    trace = made_up(base_before={EMBEDDINGS: "1", HEAD: "1"}, base={EMBEDDINGS: "2", HEAD: "2"})
    assert embeddings.tied(trace, EMBEDDINGS, HEAD).holds
    trace.base[HEAD] = "3"
    says(embeddings.tied(trace, EMBEDDINGS, HEAD), f"{EMBEDDINGS} and {HEAD} differ after training")
    del trace.base[HEAD]
    says(embeddings.tied(trace, EMBEDDINGS, HEAD), f"{HEAD} is not in the model after training")


def test_warnings_are_counted():
    trace = made_up(warnings=["no config in x", "no config in x"])
    assert embeddings.warned(trace, "no config", 2).holds
    says(embeddings.warned(trace, "no config", 3), "2 warnings say 'no config', expected 3")


def test_a_run_that_failed_holds_no_law(tmp_path):
    failed = with_layers(tmp_path, error="ValueError: no")
    for verdict in (
        embeddings.tensors_saved(failed, SHAPES),
        embeddings.saved_whole(failed, WHOLE),
        embeddings.restored(failed, made_up(), []),
        embeddings.reloaded({}, failed, []),
        embeddings.moved(failed),
        embeddings.tied(failed, EMBEDDINGS, HEAD),
        embeddings.warned(failed, "nothing", 0),
    ):
        says(verdict, "the run ended with ValueError: no")
