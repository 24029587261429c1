"""LOOP: optimizer, schedule, steps, TrainOutput."""

from typing import Any

import pytest
import torch

from harness import compat
from harness.laws import accumulation, output, rates, schedule
from harness.laws.equal import equal_runs
from harness.runs.configured import MIXED
from harness.runs.scenarios import PLAIN, SCENARIOS, by_route, cases, over
from harness.verdict import both, raises, same

EPOCHS = {
    "drop-last": PLAIN.but(max_steps=None, num_train_epochs=1, data={"rows": 37}, dataloader_drop_last=True),
    "short-windows": PLAIN.but(max_steps=None, num_train_epochs=2, data={"rows": 37}, gradient_accumulation_steps=4),
    "max-steps-over-epochs": PLAIN.but(max_steps=25, num_train_epochs=1),
}
#: Runs whose warm-up lasts to the end.
ALL_WARMUP = {
    f"{kind}-all-warmup": PLAIN.but(max_steps=3, warmup_steps=3, lr_scheduler_type=kind)
    for kind in ("linear", "cosine", "polynomial")
}
#: Every schedule that has a formula.
RATES = {name: spec for name, spec in MIXED.items() if not name.startswith("greedy")}
QLORA = PLAIN.but(model={"quantization": "nf4"}, max_steps=2)


@pytest.mark.clause("LOOP-01")
@over(by_route(SCENARIOS))
def test_every_update_is_adamw_of_the_clipped_gradient(trace, judge):
    judge(schedule.adamw(trace))


@pytest.mark.clause("LOOP-01")
def test_the_default_optimizer_is_torch_adamw_wrapped_by_accelerate(upstream, tmp_path, judge):
    from accelerate.optimizer import AcceleratedOptimizer

    trainer = upstream.build(PLAIN.but(learning_rate=None, max_steps=1), tmp_path)
    trainer.train()
    optimizer = trainer.optimizer
    names = ("initial_lr", "betas", "eps", "weight_decay", "amsgrad", "fused")
    wanted = {"initial_lr": 5e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False}
    # TrainingArguments.optim says which of the two implementations is the default.
    wanted["fused"] = True if "fused" in trainer.args.optim else None
    judge(
        both(
            same("trainer.optimizer", type(optimizer), AcceleratedOptimizer),
            same("what it wraps", type(optimizer.optimizer), torch.optim.AdamW),
            *(
                same("a group's settings", {name: group[name] for name in names}, wanted)
                for group in optimizer.param_groups
            ),
        )
    )


@pytest.mark.clause("LOOP-02")
@over(SCENARIOS | RATES)
def test_each_update_uses_the_rate_of_the_schedule(trace, judge):
    judge(rates.learning_rates(trace))


@pytest.mark.clause("LOOP-02")
@over(SCENARIOS)
def test_the_logged_rate_is_the_one_just_used(trace, judge):
    judge(rates.logged_rates(trace))


@pytest.mark.clause("LOOP-03")
@over({f"warmup_steps={value}": PLAIN.but(warmup_steps=value) for value in (1, 3, 0.25, 0.3)})
def test_warmup_is_a_number_of_steps_or_a_share_of_all(trace, judge):
    judge(rates.learning_rates(trace))


@pytest.mark.clause("LOOP-04")
@over(SCENARIOS | EPOCHS | ALL_WARMUP)
def test_a_run_makes_the_steps_and_epochs_it_was_asked_for(trace, judge):
    judge(schedule.all_steps(trace))


@pytest.mark.clause("LOOP-05")
@over(by_route(SCENARIOS) | {"max_grad_norm=0.01": PLAIN.but(max_grad_norm=0.01)})
def test_the_norm_is_logged_before_clipping_and_the_optimizer_sees_it_after(trace, judge):
    judge(schedule.clipping(trace))


@pytest.mark.clause("LOOP-05")
@cases({"max_grad_norm=0": PLAIN.but(max_grad_norm=0.0)})
def test_without_clipping_the_norm_is_logged_all_the_same(spec, train, judge):
    if not compat.logs_unclipped_norm():
        pytest.skip("this transformers computes no norm where it does not clip")
    judge(schedule.clipping(train(spec)))


@pytest.mark.clause("LOOP-06")
@over(SCENARIOS | EPOCHS)
def test_the_epoch_counts_micro_batches(trace, judge):
    judge(schedule.epochs(trace))


@pytest.mark.clause("LOOP-07")
@cases(by_route({"twice": PLAIN.but(max_steps=4)}))
def test_a_second_train_goes_on_with_weights_and_optimizer_but_not_with_the_schedule(spec, upstream, tmp_path, judge):
    trainer = upstream.build(spec, tmp_path)
    first = trainer.train()
    after_first, ends = adapter(trainer), {state["step"].item() for state in trainer.optimizer.state.values()}
    trainer.add_callback(start := start_recorder())
    second = trainer.train()
    judge(
        both(
            same("steps counted by Adam after the first", ends, {4.0}),
            same(
                "steps counted by Adam after the second",
                {s["step"].item() for s in trainer.optimizer.state.values()},
                {8.0},
            ),
            same("global_step of both", (first.global_step, second.global_step), (4, 4)),
            same("global_step at the second's start", start.step, 0),
            same("adapter tensors that the second did not start from", changed(start.adapter, after_first), []),
            same("learning rates of the second", start.rates, [rates.learning_rate(spec, n) for n in (1, 2, 3, 4)]),
        )
    )


def adapter(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def changed(seen, wanted):
    return [name for name in wanted if not torch.equal(seen[name], wanted[name])]


def start_recorder():
    """Return a callback that records step and trainable tensors at the begin of training, and each step's learning rate."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.step = state.global_step
            self.adapter = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
            self.rates = []

        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            self.rates.append(optimizer.param_groups[0]["lr"])

    return Recorder()


@pytest.mark.clause("LOOP-08")
@over(
    {f"disable_tqdm={off}": PLAIN.but(disable_tqdm=off) for off in (True, False)}
    | {f"disable_tqdm=False-{name}": spec.but(disable_tqdm=False) for name, spec in EPOCHS.items()}
)
def test_metrics_are_complete_and_fit_each_other(trace, judge):
    judge(output.metrics(trace))


@pytest.mark.clause("LOOP-08")
def test_train_returns_a_named_tuple(upstream, tmp_path, judge):
    seen = upstream.build(PLAIN.but(max_steps=1), tmp_path).train()
    judge(same("fields of what train() returns", seen._fields, ("global_step", "training_loss", "metrics")))


@pytest.mark.clause("LOOP-09")
@over(by_route({name: spec for name, spec in SCENARIOS.items() if name != "label-smoothing"}))
def test_training_loss_is_the_mean_over_optimizer_steps(trace, judge):
    judge(output.training_loss(trace))


@pytest.mark.clause("LOOP-09")
@cases({"logging": PLAIN})
def test_training_loss_does_not_depend_on_what_is_logged(spec, train, judge):
    logged: dict[str, dict[str, Any]] = {
        "each step": {},
        "each third step": {"logging_steps": 3},
        "nothing": {"logging_strategy": "no"},
    }
    judge(output.same_training_loss({name: train(spec.but(**changes)) for name, changes in logged.items()}))


@pytest.mark.clause("LOOP-10")
@over(by_route({"plain": PLAIN, "ragged": SCENARIOS["accumulation"], "n37": SCENARIOS["n37"], "nf4": QLORA}))
def test_total_flos_is_six_per_token_and_parameter(trace, judge):
    judge(output.flos(trace))


@pytest.mark.clause("LOOP-11")
def test_a_dataset_without_length_needs_max_steps(upstream, tmp_path, judge):
    spec = PLAIN.but(data={"iterable": True}, max_steps=None)
    build = lambda: upstream.build(spec, tmp_path)  # noqa: E731
    judge(raises("a Trainer with an IterableDataset and no max_steps", ValueError, "max_steps", build))


@pytest.mark.clause("LOOP-11")
@over({"drop-last": EPOCHS["drop-last"]})
def test_drop_last_leaves_out_the_short_batch(trace, judge):
    judge(both(schedule.all_steps(trace), accumulation.windows(trace)))


@pytest.mark.clause("LOOP-12")
@cases(
    by_route(
        {
            "reentrant": PLAIN.but(activation_checkpointing_kwargs={"use_reentrant": True}),
            "non-reentrant": PLAIN.but(activation_checkpointing_kwargs={"use_reentrant": False}),
        }
    )
)
def test_activation_checkpointing_changes_no_bit(spec, train, judge):
    plain = spec.but(activation_checkpointing_kwargs=None)
    judge(equal_runs(train(spec.but(activation_checkpointing=True)), train(plain)))


#: Switch -> (arguments, how often a layer's mlp runs in a step, whether the checkpoints are reentrant).
SWITCHES: dict[str, tuple[dict[str, Any], int, bool | None]] = {
    "off": ({}, 1, False),
    "on": ({"activation_checkpointing": True}, 2, False),
    "older-name": ({"gradient_checkpointing": True}, 2, False),
    "reentrant": (
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
        2,
        True,
    ),
}


@pytest.mark.clause("LOOP-13")
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("route", by_route({"get": PLAIN}))
def test_checkpointing_recomputes_each_layer_and_is_not_reentrant_by_default(switch, route, upstream, tmp_path, judge):
    arguments, times, reentrant = SWITCHES[switch]
    trainer = upstream.build(by_route({"get": PLAIN})[route].but(max_steps=1, **arguments), tmp_path)
    trainer.train()
    seen = forward_and_backward(trainer.model)
    expected = {
        "runs of each mlp": [times] * 2,
        "reentrant checkpoints": reentrant,
        "embeddings require gradients": times == 2,
    }
    judge(same("a step after training", seen, expected))


def forward_and_backward(model):
    """Return how often each mlp runs, whether checkpoints are reentrant, and whether embeddings require gradients."""
    calls, embedded = [], []
    handles = [
        module.register_forward_pre_hook(lambda *_: calls.append(1))
        for n, module in model.named_modules()
        if n.endswith("mlp")
    ]
    handles.append(model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: embedded.append(out)))
    model.train()
    rows = torch.tensor([[5, 6, 7]], device=model.device)
    loss = model(input_ids=rows, labels=rows).loss
    reentrant = "CheckpointFunctionBackward" in graph(loss)
    loss.backward()
    for handle in handles:
        handle.remove()
    return {
        "runs of each mlp": [len(calls) / (len(handles) - 1)] * (len(handles) - 1),
        "reentrant checkpoints": reentrant,
        "embeddings require gradients": embedded[0].requires_grad,
    }


def graph(tensor):
    """Return the names of all nodes of a tensor's autograd graph."""
    seen, waiting = {}, [tensor.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen[node] = node.name()
            waiting += [after for after, _ in node.next_functions]
    return {name.rpartition(".")[2] for name in seen.values()}
