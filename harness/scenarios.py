"""Named training runs: the scenarios that the suites, the mutants and the gate share.

Each is the plain run with one thing changed. A clause judges many of them: `@over(ALL)`.
"""

from __future__ import annotations

from typing import Any

from harness.spec import ADD, RunSpec

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
    "checkpointing": PLAIN.but(activation_checkpointing=True),
    "unfused-adamw": PLAIN.but(optim="adamw_torch"),
    "attention-dropout": PLAIN.but(model={"config": {"attention_dropout": 0.1}}),
    "no-dropout": PLAIN.but(lora={"lora_dropout": 0.0}),
    "label-smoothing": PLAIN.but(label_smoothing_factor=0.1),
    "cosine": PLAIN.but(lr_scheduler_type="cosine", warmup_steps=2),
}


def by_route(scenarios: dict[str, RunSpec]) -> dict[str, RunSpec]:
    """Each scenario through get_peft_model under its own name, and through add_adapter as "name/add_adapter"."""
    return scenarios | {f"{name}/{ADD}": spec.but(adapter={"route": ADD}) for name, spec in scenarios.items()}


def over(scenarios: dict[str, RunSpec]) -> Any:
    """Decorator: the test's `trace` fixture is the trace of each of these scenarios in turn."""
    import pytest

    cases = [pytest.param(spec, id=name) for name, spec in scenarios.items()]
    return pytest.mark.parametrize("trace", cases, indirect=True)


def cases(scenarios: dict[str, RunSpec]) -> Any:
    """Decorator: the test's `spec` argument is each of these specs in turn."""
    import pytest

    return pytest.mark.parametrize("spec", [pytest.param(spec, id=name) for name, spec in scenarios.items()])
