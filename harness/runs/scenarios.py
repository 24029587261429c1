"""Named training runs: the scenarios that the suites, the mutants and the gate share.

A scenario is a name and a RunSpec: the plain run with one thing changed. A scenario's name is part of the test's id and
of the report, so it stays once it is published. A test is run over a table of scenarios by one of two decorators:

    @pytest.mark.clause("CKPT-25")
    @over(SAVING)                            # the test asks for `trace`: each scenario has been trained
    def test_the_last_checkpoint_holds_the_trained_adapter(trace, judge):
        judge(checkpoint.last_is_current(trace))

    @pytest.mark.clause("GEN-02")
    @cases(by_route({"plain": PLAIN}))       # the test asks for `spec`: it trains what it needs itself
    def test_runs_repeat(spec, train, judge):
        judge(equal_runs(train(spec, again=True), train(spec)))
"""

from __future__ import annotations

from typing import Any

from harness.fixtures.methods import METHODS
from harness.fixtures.models import FAMILIES
from harness.spec import ADD, GET, ResumeSpec, RunSpec

PLAIN = RunSpec()

#: Runs in which the reference is bit-equal to the Trainer, and every law of `harness.laws.universal` holds.
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

#: Fields of a DataSpec: 37 rows of unequal lengths, a fifth of their labels ignored. With batches of four an epoch has
#: ten batches, and the last one has a single row.
RAGGED: dict[str, Any] = {"rows": 37, "min_length": 6, "ignored": 0.2}

#: A run with learning rate 0 and no dropout. The adapter never changes, so each step's loss and gradient can be
#: recomputed from the values that it starts with.
STILL = PLAIN.but(learning_rate=0.0, lora={"lora_dropout": 0.0}, max_steps=6)

#: STILL with windows of two ragged micro-batches. An epoch has five windows.
STILL_RAGGED = STILL.but(data=RAGGED, gradient_accumulation_steps=2)

#: STILL with windows of three ragged micro-batches. The fourth and last window of an epoch is short: it has one
#: micro-batch, of one row.
STILL_SHORT_WINDOW = STILL_RAGGED.but(gradient_accumulation_steps=3)

#: Fields of a LoraConfig whose lora_B does not start at zero, so that lora_A has a gradient at the first step, too.
RANDOM_B: dict[str, Any] = {"init_lora_weights": False}


def by_route(scenarios: dict[str, RunSpec]) -> dict[str, RunSpec]:
    """Return each scenario twice: through get_peft_model under its own name, through add_adapter as "name/add_adapter".

    by_route({"plain": PLAIN}) has the scenarios "plain" and "plain/add_adapter".
    """
    return scenarios | {f"{name}/{ADD}": spec.but(adapter={"route": ADD}) for name, spec in scenarios.items()}


def spec_for(family: str, method: str = "lora", route: str = GET) -> RunSpec:
    """Return a run of three steps for a row of FAMILIES and a row of METHODS, without dropout.

    spec_for("gpt2", "dora") trains a DoRA on a GPT-2.

    - family: a key of `harness.fixtures.models.FAMILIES`.
    - method: a key of `harness.fixtures.methods.METHODS`.
    - route: GET or ADD.
    """
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
    """Return `spec` as a run that resumes from a checkpoint of an earlier run, its first leg. It saves nothing itself.

    continued(PLAIN, 6, damage=("delete optimizer.pt",)) trains PLAIN to its end with a checkpoint every second step,
    deletes optimizer.pt from a copy of checkpoint-6, and resumes PLAIN from that copy.

    - step: the checkpoint's global step. True lets the subject choose it, False makes it ignore all checkpoints.
    - every: the first leg's save_steps.
    - damage: what happens to the copied checkpoints before the run resumes (`harness.runs.damage.apply`).
    - first_leg: how the first leg differs from `spec`, as keyword arguments of `RunSpec.but`.
    """
    resume = ResumeSpec(step, first_leg={"save_strategy": "steps", **first_leg}, damage=damage)
    return spec.but(save_strategy="no", save_steps=every, resume=resume)


def saving(spec: RunSpec, every: float = 3) -> RunSpec:
    """Return `spec` with a checkpoint every `every` steps, and one at the end.

    saving(PLAIN.but(max_steps=4)) has checkpoint-3 and checkpoint-4. If `every` is below 1, it is a share of all steps.
    """
    return spec.but(save_strategy="steps", save_steps=every)


def two_steps(spec: RunSpec) -> RunSpec:
    """Return `spec` with two steps of two micro-batches of two rows, and a checkpoint after each step."""
    return saving(spec.but(max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2), every=1)


SHORT = PLAIN.but(max_steps=4)

#: Runs with a checkpoint after every third step and after the last. Each trains a different set of tensors.
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
    """Return `spec` as a run in several processes, whose batches together are as large as those of `spec`.

    spread(PLAIN, "ddp") trains PLAIN on two ranks with half the batch size each.

    - strategy: a row of `harness.subjects.launch_arguments.STRATEGIES`.
    - ranks: how many processes; the batch sizes of `spec` must be divisible by it.
    - launch: further fields of LaunchSpec.
    """
    spec = spec.but(launch={"strategy": strategy, "ranks": ranks, **launch})
    sizes: dict[str, Any] = {
        name: int(spec.arguments[name]) // spec.launch.row_ranks
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size")
        if name in spec.arguments
    }
    return spec.but(**sizes)


#: A run to train in several processes and in one, and to compare. Its rows are ragged, so that ranks get different
#: numbers of labels. It is a little longer than one epoch. It has no dropout, since ranks would draw different masks.
TOGETHER = saving(
    PLAIN.but(
        data={"min_length": 6, "ignored": 0.2}, lora={"lora_dropout": 0.0}, gradient_accumulation_steps=2, max_steps=6
    )
)

#: TOGETHER with SGD. If a gradient is zero but for rounding, AdamW normalises it and makes a step of full size.
TOGETHER_SGD = TOGETHER.but(optim="sgd", learning_rate=1.0)

#: TOGETHER with each strategy, by "strategy-ranks" and what is special about it.
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
    # By default accelerate uses NCCL alone, which cannot send tensors that are on the CPU (FSDP-17).
    "fsdp2-2-offload": spread(TOGETHER.but(ddp_backend="cuda:nccl,cpu:gloo"), "fsdp2", cpu_offload=True),
    "fsdp2-2-add_adapter": spread(TOGETHER.but(adapter={"route": ADD}), "fsdp2"),
    # With one rank FSDP1 shards nothing, and saving such an adapter ends the run with an error (FSDP-14).
    "fsdp1-1": spread(TOGETHER.but(save_strategy="no"), "fsdp1", 1),
    "fsdp1-2": spread(TOGETHER, "fsdp1"),
    "fsdp1-2-sharded": spread(TOGETHER, "fsdp1", state_dict_type="SHARDED_STATE_DICT"),
    # If the base was sharded while it was loaded, transformers saves no optimizer (FSDP-09).
    "loaded-2": spread(TOGETHER.but(save_only_model=True), "loaded", limit=20.0),
    # Layers are split while they are loaded, so that no optimizer is saved here either (TP-06).
    "tp-2": spread(TOGETHER.but(save_only_model=True), "tp", limit=20.0),
    "tp-2-add_adapter": spread(TOGETHER.but(adapter={"route": ADD}, save_only_model=True), "tp", limit=20.0),
    "zero1-2": spread(TOGETHER, "zero1"),
    "zero2-2": spread(TOGETHER, "zero2"),
    "zero3-2": spread(TOGETHER, "zero3"),
}


def over(scenarios: dict[str, RunSpec]) -> Any:
    """Return a decorator that runs a test once for each scenario. The test's argument `trace` is the scenario's trace.

    @over(SAVING) makes the cases test_x[plain], test_x[rank-1], ...; the fixture `trace` trains each through
    `Runs.train`, so tests over the same scenario share one training run. Use it if a test judges one trace.
    """
    import pytest

    cases = [pytest.param(spec, id=name) for name, spec in scenarios.items()]
    return pytest.mark.parametrize("trace", cases, indirect=True)


def cases(scenarios: dict[str, RunSpec]) -> Any:
    """Return a decorator that runs a test once for each scenario. The test's argument `spec` is the scenario's RunSpec.

    @cases({"plain": PLAIN}) makes the case test_x[plain]. Nothing is trained: the test calls `train(spec)`. Use it if
    a test compares several runs, or changes the spec first.
    """
    import pytest

    return pytest.mark.parametrize("spec", [pytest.param(spec, id=name) for name, spec in scenarios.items()])
