"""Named training runs: the scenarios that the suites, the mutants and the gate share.

Each is the plain run with one thing changed. A clause judges many of them: `@over(ALL)`.
"""

from __future__ import annotations

from typing import Any

from harness.fixtures.methods import METHODS
from harness.fixtures.models import FAMILIES
from harness.spec import ADD, GET, ResumeSpec, RunSpec

PLAIN = RunSpec()

#: The runs in which the reference is bit-equal to the Trainer, and every universal law holds.
SCENARIOS: dict[str, RunSpec] = {
    "plain": PLAIN,
    "accumulation": PLAIN.but(data={"min_length": 6}, gradient_accumulation_steps=3, max_steps=8),
    "n37": PLAIN.but(data={"rows": 37}, max_steps=20),
    "warmup-decay-clip": PLAIN.but(warmup_steps=3, weight_decay=0.1, max_grad_norm=0.1),
    "bf16": PLAIN.but(bf16=True),
    "eval-every-5": PLAIN.but(data={"eval_rows": 10}, eval_strategy="steps", eval_steps=5),
    "epochs-1.5": PLAIN.but(max_steps=None, num_train_epochs=1.5),
    "data-seed": PLAIN.but(data_seed=7, max_steps=20),
    # Non-reentrant is the default since transformers 5.0; before, get_peft_model could not train with the default.
    "checkpointing": PLAIN.but(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": False}),
    "unfused-adamw": PLAIN.but(optim="adamw_torch"),
    "attention-dropout": PLAIN.but(model={"config": {"attention_dropout": 0.1}}),
    "no-dropout": PLAIN.but(lora={"lora_dropout": 0.0}),
    "label-smoothing": PLAIN.but(label_smoothing_factor=0.1),
    "cosine": PLAIN.but(lr_scheduler_type="cosine", warmup_steps=2),
}

#: Rows of unequal lengths, with labels left out here and there. Batches of four make ten, the last of one row.
RAGGED: dict[str, Any] = {"rows": 37, "min_length": 6, "ignored": 0.2}

#: A run whose adapter stays where it starts, without dropout: each step's loss and gradient can be computed anew.
STILL = PLAIN.but(learning_rate=0.0, lora={"lora_dropout": 0.0}, max_steps=6)

#: The same over windows of two ragged micro-batches; five windows fill an epoch.
STILL_RAGGED = STILL.but(data=RAGGED, gradient_accumulation_steps=2)

#: The same over windows of three, of which the fourth and last of an epoch is short: one micro-batch of one row.
STILL_SHORT_WINDOW = STILL_RAGGED.but(gradient_accumulation_steps=3)

#: An adapter whose lora_B is not zero, so that lora_A has a gradient at the first step too.
RANDOM_B = {"init_lora_weights": False}


def by_route(scenarios: dict[str, RunSpec]) -> dict[str, RunSpec]:
    """Each scenario through get_peft_model under its own name, and through add_adapter as "name/add_adapter"."""
    return scenarios | {f"{name}/{ADD}": spec.but(adapter={"route": ADD}) for name, spec in scenarios.items()}


def spec_for(family: str, method: str = "lora", route: str = GET) -> RunSpec:
    """The plain run of three steps for a row of FAMILIES and one of METHODS, without dropout."""
    base, adapter = FAMILIES[family], METHODS[method]
    return PLAIN.but(
        model={"family": family},
        adapter={"route": route, "peft_type": adapter.peft_type, "config": adapter.fields(base)},
        data={"task": base.task},
        max_steps=3,
    )


def continued(
    spec: RunSpec, step: int | bool, every: int = 2, damage: tuple[str, ...] = (), **first_leg: Any
) -> RunSpec:
    """`spec`, continued from the checkpoint at `step` of a run that saved every `every` steps.

    first_leg: what that run's spec had otherwise. The resumed run itself saves nothing.
    """
    resume = ResumeSpec(step, first_leg={"save_strategy": "steps", **first_leg}, damage=damage)
    return spec.but(save_strategy="no", save_steps=every, resume=resume)


def saving(spec: RunSpec, every: float = 3) -> RunSpec:
    """`spec`, with a checkpoint every `every` steps and at the end."""
    return spec.but(save_strategy="steps", save_steps=every)


SHORT = PLAIN.but(max_steps=4)

#: Runs with a checkpoint after each third step and the last, each with another set of trainable tensors.
SAVING: dict[str, RunSpec] = {
    "plain": saving(PLAIN),
    "rank-1": saving(SHORT.but(lora={"r": 1})),
    "rank-16": saving(SHORT.but(lora={"r": 16})),
    "tied-embeddings": saving(SHORT.but(model={"family": "llama-tied"})),
    "dora": saving(SHORT.but(lora={"use_dora": True})),
    "modules-to-save": saving(SHORT.but(lora={"modules_to_save": ["lm_head"]})),
    "bias-all": saving(SHORT.but(model={"family": "gpt2"}, lora={"bias": "all", "target_modules": ["c_attn"]})),
    "named-foo": saving(SHORT.but(adapter={"name": "foo"})),
    "nf4": saving(SHORT.but(model={"quantization": "nf4"})),
}


def spread(spec: RunSpec, strategy: str, ranks: int = 2, **launch: Any) -> RunSpec:
    """`spec` in several processes that together train batches as large as its own. launch: fields of LaunchSpec."""
    sizes: dict[str, Any] = {
        name: int(spec.arguments[name]) // ranks
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size")
        if name in spec.arguments
    }
    return spec.but(launch={"strategy": strategy, "ranks": ranks, **launch}, **sizes)


#: What is trained in several processes and in one, to be compared: ragged rows, so that ranks have unlike numbers of
#: labels, over one epoch and a bit; no dropout, whose masks would be others.
TOGETHER = saving(
    PLAIN.but(
        data={"min_length": 6, "ignored": 0.2}, lora={"lora_dropout": 0.0}, gradient_accumulation_steps=2, max_steps=6
    )
)

#: The same by SGD: AdamW makes whole steps of what is left of a gradient that is nearly zero.
TOGETHER_SGD = TOGETHER.but(optim="sgd", learning_rate=1.0)

#: Every way to spread it.
LAUNCHES: dict[str, RunSpec] = {
    "ddp-2": spread(TOGETHER, "ddp"),
    "ddp-4": spread(TOGETHER, "ddp", 4),
    "ddp-2-checkpointing": spread(
        TOGETHER.but(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": False}), "ddp"
    ),
    "ddp-2-add_adapter": spread(TOGETHER.but(adapter={"route": ADD}), "ddp"),
    "fsdp2-1": spread(TOGETHER, "fsdp2", 1),
    "fsdp2-2": spread(TOGETHER, "fsdp2"),
    "fsdp2-2-sharded": spread(TOGETHER, "fsdp2", state_dict_type="SHARDED_STATE_DICT"),
    "fsdp2-2-checkpointing": spread(TOGETHER, "fsdp2", activation_checkpointing=True),
    # By itself accelerate takes NCCL alone, which moves nothing that lies on a CPU (FSDP-17).
    "fsdp2-2-offload": spread(TOGETHER.but(ddp_backend="cuda:nccl,cpu:gloo"), "fsdp2", cpu_offload=True),
    "fsdp2-2-add_adapter": spread(TOGETHER.but(adapter={"route": ADD}), "fsdp2"),
    # With one rank FSDP1 shards nothing, and saving such an adapter ends the run (FSDP-14).
    "fsdp1-1": spread(TOGETHER.but(save_strategy="no"), "fsdp1", 1),
    "fsdp1-2": spread(TOGETHER, "fsdp1"),
    "fsdp1-2-sharded": spread(TOGETHER, "fsdp1", state_dict_type="SHARDED_STATE_DICT"),
    # Of a base that was sharded as it was loaded transformers saves no optimizer (FSDP-09).
    "loaded-2": spread(TOGETHER.but(save_only_model=True), "loaded", limit=20.0),
    "zero1-2": spread(TOGETHER, "zero1"),
    "zero2-2": spread(TOGETHER, "zero2"),
    "zero3-2": spread(TOGETHER, "zero3"),
}


def over(scenarios: dict[str, RunSpec]) -> Any:
    """Decorator: the test's `trace` fixture is the trace of each of these scenarios in turn."""
    import pytest

    cases = [pytest.param(spec, id=name) for name, spec in scenarios.items()]
    return pytest.mark.parametrize("trace", cases, indirect=True)


def cases(scenarios: dict[str, RunSpec]) -> Any:
    """Decorator: the test's `spec` argument is each of these specs in turn."""
    import pytest

    return pytest.mark.parametrize("spec", [pytest.param(spec, id=name) for name, spec in scenarios.items()])
