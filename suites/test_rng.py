"""RNG: which parts draw random numbers, from which generator, and which rows follow from the seed."""

import contextlib
import math
import os
from typing import Any
from unittest import mock

import pytest

from harness.fixtures import data, models
from harness.laws import data_order, resume
from harness.laws.equal import equal_runs
from harness.runs.scenarios import PLAIN, SCENARIOS, cases, continued, over
from harness.subjects.hf_trainer import inject, record_output, record_state
from harness.subjects.observer import Observer
from harness.tolerance import COMPILED, EXACT
from harness.verdict import same

SHORT = PLAIN.but(data={"rows": 16}, max_steps=8)


def noisy(upstream, spec, directory, before=0, between=0):
    """Return the trace of a run with random numbers drawn before Trainer(), and between Trainer() and train().

    They are drawn on the device, from the generator that dropout uses.
    """
    import torch

    observer = Observer(spec, upstream.name, data.rows(spec.data)[0], directory, upstream.sequences)
    model = inject(models.build(spec.model), spec.adapter)
    torch.rand(before, device=upstream.device)
    trainer = upstream.build(spec, directory, observer, model=model)
    torch.rand(between, device=upstream.device)
    record_output(observer.trace, trainer.train())
    record_state(observer.trace, trainer.state)
    return observer.finish()


@pytest.mark.clause("RNG-01")
def test_numbers_drawn_before_trainer_change_nothing(upstream, train, tmp_path, judge):
    judge(equal_runs(noisy(upstream, SHORT, tmp_path, before=3), train(SHORT)))


@pytest.mark.clause("RNG-01")
def test_numbers_drawn_between_trainer_and_train_shift_its_dropout(upstream, train, tmp_path, judge):
    judge(data_order.other_draws(noisy(upstream, SHORT, tmp_path, between=3), train(SHORT)))


@pytest.mark.clause("RNG-01")
@cases({"model-init": SHORT.but(trainer={"model_init": True})})
def test_a_model_that_the_trainer_makes_trains_like_one_that_it_is_given(spec, train, judge):
    judge(equal_runs(train(spec), train(SHORT)))


@pytest.mark.clause("RNG-01")
def test_train_seeds_again_where_it_builds_the_model(upstream, tmp_path, judge):
    import torch

    def trained(name, between):
        trainer = upstream.build(SHORT.but(trainer={"model_init": True}), tmp_path / name)
        torch.rand(between)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    judge(same("losses of each step", trained("noise", 3), trained("silence", 0)))


#: Runs whose order of rows follows from the spec alone.
ORDERED = {
    "two-epochs": SHORT,
    "data-seed-0": SHORT.but(data_seed=0),
    "sequential": SHORT.but(train_sampling_strategy="sequential"),
    "drop-last": PLAIN.but(data={"rows": 18}, max_steps=8, dataloader_drop_last=True),
    "short-last-batch-and-window": PLAIN.but(
        data={"rows": 9}, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=4
    ),
    "iterable": SHORT.but(data={"rows": 16, "iterable": True}),
}


@pytest.mark.clause("RNG-02")
@over(SCENARIOS | ORDERED)
def test_the_seed_alone_gives_the_order_of_the_rows(trace, judge):
    judge(data_order.follows_seed(trace))


@pytest.mark.clause("RNG-02")
def test_the_order_does_not_depend_on_the_global_generator(upstream, tmp_path, judge):
    judge(data_order.follows_seed(noisy(upstream, SHORT, tmp_path, before=5, between=7)))


NO_DROPOUT = SHORT.but(lora={"lora_dropout": 0.0})
EVALUATED: dict[str, Any] = {"data": {"rows": 16, "eval_rows": 4}, "eval_strategy": "steps", "eval_steps": 2}


@pytest.mark.clause("RNG-03")
@cases(
    {
        "plain": NO_DROPOUT,
        "saved-and-logged-at-each-step": NO_DROPOUT.but(save_strategy="steps", save_steps=1),
        "logged-never": NO_DROPOUT.but(logging_strategy="no"),
        "evaluated-every-2": NO_DROPOUT.but(**EVALUATED),
        "accumulation": NO_DROPOUT.but(per_device_train_batch_size=2, gradient_accumulation_steps=2),
        "checkpointing": NO_DROPOUT.but(
            activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": False}
        ),
        "bf16": NO_DROPOUT.but(bf16=True),
    }
)
def test_each_pass_draws_one_number_and_nothing_else_does(spec, train, judge):
    import torch

    trace = train(spec, again=True)
    passes = math.ceil(8 / data_order.steps_per_epoch(spec)) + len(trace.evaluations)
    judge(data_order.one_draw_each(torch.get_rng_state(), spec.arguments["seed"], passes))


WORKERS = continued(SHORT.but(dataloader_num_workers=2), 2)


@pytest.mark.clause("RNG-04")
def test_workers_do_not_change_a_run(train, judge):
    judge(equal_runs(train(WORKERS.first_leg()), train(SHORT)))


@pytest.mark.clause("RNG-04")
def test_workers_do_not_change_how_a_run_resumes(train, judge):
    judge(resume.continues(train(WORKERS), train(WORKERS.first_leg()), after=2))


@contextlib.contextmanager
def determinism_undone():
    """Restore, after the test, what full_determinism=True sets for the whole process."""
    import torch

    kept = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    with mock.patch.dict(os.environ):
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(kept[0])
            torch.backends.cudnn.deterministic = kept[1]


@pytest.mark.clause("RNG-05")
def test_full_determinism_is_asked_of_torch_and_cuda(upstream, tmp_path, judge):
    import torch

    with determinism_undone():
        upstream.build(PLAIN.but(full_determinism=True), tmp_path)
        seen = {
            "torch.are_deterministic_algorithms_enabled()": torch.are_deterministic_algorithms_enabled(),
            "cudnn.deterministic": torch.backends.cudnn.deterministic,
            "cudnn.benchmark": torch.backends.cudnn.benchmark,
            **{name: os.environ.get(name) for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG")},
        }
    judge(same("what is set", seen, dict(zip(seen, (True, True, False, "1", ":16:8"), strict=True))))


@pytest.mark.clause("RNG-05")
@cases({"full-determinism": PLAIN.but(max_steps=3, full_determinism=True)})
def test_full_determinism_is_the_same_run(spec, train, judge):
    with determinism_undone():
        trace = train(spec)
    # CUDA's deterministic kernels add in another order than the others, as compiled ones do.
    within = COMPILED if trace.spec.launch.device == "cuda" else EXACT
    judge(equal_runs(trace, train(spec.but(full_determinism=None)), within))
