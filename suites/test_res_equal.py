"""RES: a resumed run is the run that was interrupted, bit for bit."""

import hashlib
import random
from typing import Any

import pytest

from harness.fixtures import models
from harness.laws import data_order, equal, injection, resume
from harness.runs.scenarios import PLAIN, cases, continued
from harness.spec import ADD
from harness.subjects.hf_trainer import inject, recorded_warnings
from harness.verdict import both, same

#: Four steps an epoch and two epochs: step 2 lies inside the first, step 4 on the boundary, step 6 inside the second.
SHORT = PLAIN.but(data={"rows": 16}, max_steps=8)
RAGGED = {"rows": 16, "min_length": 6}
#: 4096 elements a tensor. From there on, bitsandbytes keeps optimizer state in 8 bits.
LARGE = {"r": 64}


def from_step(spec):
    return spec.resume.checkpoint


def continues(train, spec):
    return resume.continues(train(spec), train(spec.first_leg()), after=from_step(spec))


#: Configurations that are interrupted within the second epoch, when rows, generators and optimizer all have a history.
CONFIGURATIONS = {
    "no-dropout": SHORT.but(lora={"lora_dropout": 0.0}),
    "attention-dropout": SHORT.but(model={"config": {"attention_dropout": 0.1}}),
    "neftune": SHORT.but(neftune_noise_alpha=5.0),
    "accumulation": SHORT.but(gradient_accumulation_steps=2, per_device_train_batch_size=2),
    "accumulation-of-unequal-lengths": SHORT.but(data=RAGGED, gradient_accumulation_steps=2),
    "short-last-batch": SHORT.but(data={"rows": 14}),
    "reentrant-checkpointing": SHORT.but(
        activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True}
    ),
    "checkpointing": SHORT.but(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": False}),
    "bf16": SHORT.but(bf16=True),
    "data-seed": SHORT.but(data_seed=7),
    "sequential": SHORT.but(train_sampling_strategy="sequential"),
    "unfused-adamw": SHORT.but(optim="adamw_torch"),
    "adafactor": SHORT.but(optim="adafactor"),
    "sgd": SHORT.but(optim="sgd"),
    "adamw-bnb-8bit": SHORT.but(optim="adamw_bnb_8bit", lora=LARGE),
    "paged-adamw-8bit": SHORT.but(optim="paged_adamw_8bit", lora=LARGE),
    "paged-adamw-32bit": SHORT.but(optim="paged_adamw_32bit"),
    "lion-32bit": SHORT.but(optim="lion_32bit"),
    "cosine-warmup-decay": SHORT.but(lr_scheduler_type="cosine", warmup_steps=3, weight_decay=0.1),
    "evaluation-with-each-save": SHORT.but(data={"rows": 16, "eval_rows": 4}, eval_strategy="steps", eval_steps=2),
    "nf4-checkpointing": SHORT.but(
        model={"quantization": "nf4", "prepare_for_kbit": True}, activation_checkpointing=True
    ),
    "modules-to-save": SHORT.but(lora={"modules_to_save": ["lm_head"]}),
    "dora": SHORT.but(lora={"use_dora": True}),
    "unseedable-sampler": SHORT.but(accelerator_config={"use_seedable_sampler": False}),
    "group-by-length": SHORT.but(data=RAGGED, train_sampling_strategy="group_by_length"),
    "iterable": SHORT.but(data={"rows": 16, "iterable": True}),
    "lora-plus": SHORT.but(trainer={"optimizers": ["harness.fixtures.optimizers:loraplus", {"loraplus_lr_ratio": 4}]}),
    "lora-fa": SHORT.but(trainer={"optimizers": "harness.fixtures.optimizers:lorafa"}),
    "schedule-free": SHORT.but(trainer={"optimizers": "harness.fixtures.optimizers:schedule_free"}),
    "parameter-groups": SHORT.but(trainer={"optimizers": "harness.fixtures.optimizers:parameter_groups"}),
    "model-init": SHORT.but(trainer={"model_init": True}),
    "packed": SHORT.but(data=RAGGED, trainer={"data_collator": "harness.fixtures.collators:packed"}),
}
#: Runs in which the order of rows, or the random numbers, differ between the first epoch and later ones.
BY_POSITION = ("unseedable-sampler", "group-by-length", "iterable")
EVALUATED = SHORT.but(data={"rows": 16, "eval_rows": 4}, eval_strategy="epoch")
SAVED_BY_EPOCH: dict[str, Any] = {"save_strategy": "epoch"}


@pytest.mark.clause("RES-01")
@cases({f"step-{step}": continued(PLAIN.but(max_steps=20), step, every=1) for step in range(1, 20)})
def test_each_of_twenty_steps_can_be_resumed(spec, train, judge):
    judge(continues(train, spec))


@pytest.mark.clause("RES-01")
@cases(
    {
        f"{name}/step-6": continued(spec, 6, every=2 if name in BY_POSITION else 6)
        for name, spec in CONFIGURATIONS.items()
    }
)
def test_each_configuration_resumes_inside_the_second_epoch(spec, train, judge):
    judge(continues(train, spec))


@pytest.mark.clause("RES-01")
@cases({f"{name}/step-{step}": continued(CONFIGURATIONS[name], step) for name in BY_POSITION for step in (2, 4)})
def test_each_order_of_rows_resumes_in_the_first_epoch_and_at_its_end(spec, train, judge):
    judge(continues(train, spec))


@pytest.mark.clause("RES-01")
@cases(
    {
        "saved-at-each-epoch/step-4": continued(SHORT, 4, **SAVED_BY_EPOCH),
        "saved-and-evaluated-at-each-epoch/step-4": continued(EVALUATED, 4, **SAVED_BY_EPOCH),
        "evaluated-at-each-epoch/step-2": continued(EVALUATED, 2),
        "evaluated-at-each-epoch/step-4": continued(EVALUATED, 4),
        "evaluated-at-each-epoch/no-dropout/step-4": continued(EVALUATED.but(lora={"lora_dropout": 0.0}), 4),
    }
)
def test_an_evaluation_at_the_end_of_an_epoch_does_not_matter(spec, train, judge):
    judge(continues(train, spec))


@pytest.mark.clause("RES-02")
@cases({f"{ADD}/step-4": continued(SHORT.but(adapter={"route": ADD}), 4)})
def test_add_adapter_resumes_from_its_own_checkpoint(spec, train, judge):
    judge(continues(train, spec))


@pytest.mark.clause("RES-02")
@cases({"step-2": continued(SHORT, 2, adapter={"route": ADD})})
def test_get_peft_model_resumes_from_a_checkpoint_of_add_adapter(spec, train, judge):
    judge(continues(train, spec))


@pytest.mark.clause("RES-15")
def test_each_step_begins_with_the_same_random_state(upstream, train, tmp_path, judge):
    written = train(continued(SHORT, 4).first_leg())
    whole = random_states(upstream.build(SHORT, tmp_path))
    judge(both(*[same_states(upstream.build(SHORT, tmp_path), written.checkpoint(step), whole) for step in (2, 4, 6)]))


def same_states(trainer, checkpoint, whole):
    """After its checkpoint, a resumed run's generators equal those of the uninterrupted run."""
    resumed = random_states(trainer, resume_from_checkpoint=checkpoint.path)
    seen = {f"step {number}": state for number, state in resumed.items()}
    wanted = {f"step {number}": state for number, state in whole.items() if number > checkpoint.step}
    return same(f"state of the generators at each step after checkpoint-{checkpoint.step}", seen, wanted)


def random_states(trainer, **options):
    """Return, for a run of this trainer, step number -> digest of all global generators at the begin of the step."""
    import numpy
    import torch
    from transformers import TrainerCallback

    seen = {}

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            state_of_numpy: Any = numpy.random.get_state()
            _, keys, position, *_ = state_of_numpy
            # If there is a GPU, dropout draws there.
            cuda = torch.cuda.get_rng_state().tolist() if torch.cuda.is_available() else None
            states = (torch.get_rng_state().tolist(), cuda, keys.tolist(), position, random.getstate())
            seen[state.global_step + 1] = hashlib.sha256(repr(states).encode()).hexdigest()[:16]

    trainer.add_callback(Watch())
    trainer.train(**options)
    return seen


@pytest.mark.clause("RES-16")
@cases(
    {
        "bf16-adapter/step-4": continued(
            SHORT.but(model={"dtype": "bfloat16"}, adapter={"options": {"autocast_adapter_dtype": False}}), 4
        ),
        "bf16-base/step-4": continued(SHORT.but(model={"dtype": "bfloat16"}), 4),
    }
)
def test_the_adapter_keeps_its_dtype(spec, train, judge):
    judge(continues(train, spec))


def redrawn(**adapter):
    """Return the run, resumed with adapters drawn from another seed, so that whatever is not restored differs."""
    return continued(SHORT.but(adapter={**adapter, "seed": 2}), 2, adapter={**adapter, "seed": 1})


@pytest.mark.clause("RES-17")
@cases(
    {
        "named-foo": redrawn(name="foo"),
        "default-and-second": redrawn(others={"second": {}}),
        "foo-and-second": redrawn(name="foo", others={"second": {"r": 4}}),
    }
)
def test_every_adapter_is_restored_whatever_its_name(spec, train, judge):
    judge(continues(train, spec))


@pytest.mark.clause("RES-17")
def test_of_two_active_adapters_both_are_restored_and_the_first_goes_on(upstream, tmp_path, judge):
    # Without an optimizer: that of a run with two adapters does not fit a run with one active adapter.
    saves: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4, "save_only_model": True}
    spec = SHORT.but(max_steps=4, **saves, adapter={"others": {"second": {}}})

    def trained(seed, told, **options):
        model = inject(models.build(spec.model), spec.but(adapter={"seed": seed}).adapter)
        model.base_model.set_adapter(["default", "second"])
        with recorded_warnings(told):
            upstream.build(spec, tmp_path, model=model).train(**options)
        return model

    told, names = [], ("default", "second")
    first = trained(1, [])
    wanted = {name: injection.adapter_tensors(first, name) for name in names}
    again = trained(2, told, resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    said = [one for one in told if "only consider the first adapter" in one]
    judge(
        both(
            *[equal.same_adapter(injection.adapter_tensors(again, name), wanted[name]) for name in names],
            same("active adapters", list(again.active_adapters), ["default"]),
            same("warnings", len(said), 1),
        )
    )


@pytest.mark.clause("RES-18")
@cases(
    {
        f"step-{step}": continued(
            SHORT.but(
                adapter={
                    "peft_type": "PROMPT_TUNING",
                    "config": {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM"},
                }
            ),
            step,
        )
        for step in (2, 4)
    }
)
def test_prompt_tuning_resumes(spec, train, judge):
    judge(continues(train, spec))


def counted(**lora):
    """Return the run, resumed with an adapter drawn from another seed. Its config is the default one with `lora` changed."""
    return continued(SHORT.but(lora=lora, adapter={"seed": 2}), 2, adapter={"seed": 1}, lora=lora)


# Two layers, each adapted projection with an A and a B.
@pytest.mark.clause("RES-21")
@pytest.mark.parametrize(
    ("spec", "count"),
    [
        pytest.param(counted(), 2 * 2 * 2, id="two-projections"),
        pytest.param(counted(target_modules="all-linear"), 2 * 7 * 2, id="all-linear"),
        pytest.param(counted(use_dora=True), 2 * 2 * 3, id="dora"),
        pytest.param(counted(modules_to_save=["lm_head"]), 2 * 2 * 2 + 1, id="modules-to-save"),
        pytest.param(redrawn(name="foo"), 2 * 2 * 2, id="named-foo"),
        pytest.param(redrawn(others={"second": {}}), 2 * 2 * 2, id="default-and-second"),
        pytest.param(
            continued(CONFIGURATIONS["reentrant-checkpointing"], 6, every=6), 2 * 2 * 2, id="reentrant-checkpointing"
        ),
    ],
)
def test_every_adapter_tensor_is_restored_before_the_first_step(spec, count, train, judge):
    judge(resume.restored(train(spec), train(spec.first_leg()), from_step(spec), count))


@pytest.mark.clause("RES-22")
@cases(
    {f"plain/step-{step}": continued(SHORT, step) for step in (2, 4, 6)}
    | {
        f"{name}/step-6": continued(CONFIGURATIONS[name], 6, every=6)
        for name in ("data-seed", "accumulation", "short-last-batch")
    }
)
def test_the_rest_of_an_epoch_keeps_its_order(spec, train, judge):
    judge(data_order.follows_seed(train(spec)))


#: Eight micro-batches an epoch in windows of 3, 3 and 2; and five in windows of 4 and 1, whose last batch is short.
UNEVEN = {
    "three-of-eight": PLAIN.but(
        data={"rows": 16}, per_device_train_batch_size=2, gradient_accumulation_steps=3, max_steps=6
    ),
    "four-of-five": PLAIN.but(
        data={"rows": 9, "min_length": 6}, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=4
    ),
}


@pytest.mark.clause("RES-23")
@cases(
    {
        f"{name}/step-{step}": continued(spec, step, every=1)
        for name, spec in UNEVEN.items()
        for step in range(1, spec.arguments["max_steps"])
    }
)
def test_accumulation_that_does_not_divide_the_epoch_resumes(spec, train, judge):
    judge(continues(train, spec))


@pytest.mark.clause("RES-24")
@cases({f"step-{step}": continued(SHORT.but(data={"rows": 16, "augment": True}), step) for step in (2, 4, 6)})
def test_rows_drawn_at_random_resume(spec, train, judge):
    judge(continues(train, spec))
