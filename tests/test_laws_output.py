"""Tests of harness/laws/output.py on made-up traces."""

import copy

import pytest

from harness.laws import output
from tests.traces import made_up


def complete():
    """Return a run of four steps of two rows in 0.5 s. It has 24 numbers that are not embeddings, and 16 tokens a row."""
    trace = made_up()
    loss = trace.output["training_loss"]
    trace.output["metrics"] = {
        "train_runtime": 0.5,
        "train_samples_per_second": 16.0,
        "train_steps_per_second": 8.0,
        "total_flos": 0.0,
        "train_loss": loss,
        "epoch": 0.2,
    }
    trace.log_history.append({"step": 4, "total_flos": 6.0 * (4 * 2 * 16) * (16 + 8 + 8)})
    trace.parameters["model.embed_tokens.weight"] = ["float32", [256, 64]]
    return trace


LAWS = {law.__name__: law for law in (output.metrics, output.training_loss, output.flos)}


@pytest.mark.parametrize("law", LAWS)
def test_a_faultless_run_holds(law):
    assert LAWS[law](complete()).seen == ()


def test_steps_and_samples_round_as_the_trainer_rounds():
    trace = complete()
    trace.output["metrics"] |= {
        "train_runtime": round(0.31416, 4),
        "train_steps_per_second": round(4 / 0.31416, 3),
        "train_samples_per_second": round(8 / 0.31416, 3),
    }
    assert output.metrics(trace).holds


def _metric(name, value):
    return lambda trace: trace.output["metrics"].update({name: value})


def _lost(name):
    return lambda trace: trace.output["metrics"].pop(name)


def _divided_again(trace):
    trace.output["training_loss"] /= 2


def _embeddings_counted(trace):
    trace.log_history[-1]["total_flos"] += 6.0 * 128 * 256 * 64


def _no_loss(trace):
    trace.steps[0].batches[0].loss = None


@pytest.mark.parametrize(
    ("law", "change", "words"),
    [
        ("metrics", _lost("total_flos"), "metrics lack total_flos"),
        ("metrics", _metric("train_perplexity", 1.0), "metrics have train_perplexity besides"),
        ("metrics", _metric("train_loss", 1.0), "train_loss is 1.0, training_loss 5.25"),
        ("metrics", _metric("epoch", 0.25), "epoch is 0.25, expected 0.2"),
        ("metrics", _metric("train_steps_per_second", 8.1), "train_steps_per_second is 8.1 over 0.5 s, expected 4"),
        ("metrics", _metric("train_samples_per_second", 32.0), "train_samples_per_second is 32.0 over 0.5 s"),
        ("metrics", lambda trace: trace.output.update(global_step=5), "global_step is 5, expected 4"),
        ("training_loss", _divided_again, "training_loss is 2.625"),
        ("training_loss", _no_loss, "step 1: the model returned no loss"),
        ("flos", _embeddings_counted, "total_flos is"),
        ("flos", lambda trace: trace.log_history.pop(), "total_flos is None"),
    ],
)
def test_a_fault_is_seen_and_named(law, change, words):
    trace = copy.deepcopy(complete())
    change(trace)
    verdict = LAWS[law](trace)
    assert not verdict.holds
    assert words in "\n".join(verdict.seen)


def test_epochs_count_their_rows_and_not_full_batches():
    trace = complete()
    trace.spec = trace.spec.but(max_steps=None, num_train_epochs=0.2, data={"rows": 39})
    assert output.samples(trace) == pytest.approx(7.8)


def test_shares_add_up_and_means_are_averaged():
    trace = complete()
    for step in trace.steps:
        step.batches = [copy.copy(step.batches[0]), copy.copy(step.batches[0])]
        for batch in step.batches:
            batch.num_items = None
    assert output.training_loss(trace).holds
    for step in trace.steps:
        for batch in step.batches:
            batch.num_items, batch.loss = 60.0, batch.loss / 2
    assert output.training_loss(trace).holds


def test_a_training_loss_that_depends_on_logging_is_seen():
    other = complete()
    assert output.same_training_loss({"each": complete(), "none": other}).holds
    other.output["training_loss"] += 1e-3
    assert "(none)" in output.same_training_loss({"each": complete(), "none": other}).seen[0]


def test_a_byte_of_a_4_bit_base_holds_two_numbers():
    trace = complete()
    trace.spec = trace.spec.but(model={"quantization": "nf4"})
    trace.parameters = {"model.layers.0.self_attn.q_proj.weight": ["uint8", [8, 1]], "norm": ["float32", [4]]}
    assert output.parameters(trace) == 20
