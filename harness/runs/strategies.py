"""Hypothesis strategies: training runs that nobody has listed. Shrinks to fewer steps, layers, rank and rows.

The simplest value of every choice stands first, since that is where hypothesis shrinks to.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from harness.fixtures.methods import METHODS, misfit
from harness.fixtures.models import CAUSAL, FAMILIES
from harness.spec import ADD, GET, LORA, RunSpec

#: Of a Llama layer, in the order in which a failing example sheds them.
_TARGETS = ("q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

#: Base models that the reference trains too.
_LLAMAS = ("llama", "llama-tied")


@st.composite
def llamas(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a ModelSpec: a Llama with 1 to 3 layers, tied or not, with or without attention dropout."""
    config: dict[str, Any] = {"num_hidden_layers": draw(st.integers(1, 3))}
    if draw(st.booleans()):
        config["attention_dropout"] = 0.1
    return {"family": draw(st.sampled_from(_LLAMAS)), "config": config, "seed": draw(st.integers(0, 3))}


@st.composite
def packed(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a ModelSpec: mostly none; or a base packed to NF4, prepared or not, computing in float32 or bfloat16."""
    if draw(st.integers(0, 2)) < 2:
        return {}
    return {
        "quantization": "nf4",
        "dtype": draw(st.sampled_from(("float32", "bfloat16"))),
        "quant_storage": draw(st.sampled_from((None, "bfloat16", "float32"))),
        "prepare_for_kbit": draw(st.booleans()),
    }


@st.composite
def lora(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a LoraConfig that the reference implements as well."""
    chosen = draw(st.lists(st.sampled_from(_TARGETS), min_size=1, max_size=4, unique=True))
    return {
        **LORA,
        "r": draw(st.sampled_from((1, 2, 4, 8, 3))),
        "lora_alpha": draw(st.sampled_from((16, 1, 8, 32))),
        "lora_dropout": draw(st.sampled_from((0.0, 0.1, 0.5))),
        "use_rslora": draw(st.booleans()),
        "target_modules": sorted(chosen, key=_TARGETS.index),
    }


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a DataSpec: 3 to 40 rows of 4 to 16 tokens, even or ragged, with labels ignored or not."""
    length = draw(st.sampled_from((8, 4, 16)))
    ragged = draw(st.booleans())
    return {
        "rows": draw(st.integers(3, 40)),
        "length": length,
        "min_length": draw(st.integers(2, length)) if ragged else None,
        "ignored": draw(st.sampled_from((0.0, 0.3))),
        "seed": draw(st.integers(0, 3)),
    }


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """TrainingArguments that a one-process run on a CPU can have and the reference implements."""
    chosen: dict[str, Any] = {
        "max_steps": draw(st.integers(1, 8)),
        "per_device_train_batch_size": draw(st.integers(1, 5)),
        "gradient_accumulation_steps": draw(st.integers(1, 4)),
        "learning_rate": draw(st.sampled_from((1e-2, 1e-3))),
        "lr_scheduler_type": draw(st.sampled_from(("linear", "constant", "cosine", "constant_with_warmup"))),
        "warmup_steps": draw(st.integers(0, 3)),
        "weight_decay": draw(st.sampled_from((0.0, 0.1))),
        "max_grad_norm": draw(st.sampled_from((1.0, 0.0, 0.1))),
        "optim": draw(st.sampled_from(("adamw_torch_fused", "adamw_torch", "sgd"))),
        "label_smoothing_factor": draw(st.sampled_from((0.0, 0.1))),
        "seed": draw(st.integers(0, 99)),
        "bf16": draw(st.booleans()),
        "activation_checkpointing": draw(st.booleans()),
        "dataloader_drop_last": draw(st.booleans()),
    }
    if draw(st.booleans()):
        chosen["data_seed"] = draw(st.integers(0, 99))
    if draw(st.booleans()):  # epochs rather than steps; at most about twenty steps
        chosen |= {"max_steps": None, "num_train_epochs": draw(st.sampled_from((1, 1.5, 2)))}
    if draw(st.integers(0, 15)) == 15:  # a process for each pass over the rows takes longer than the pass
        chosen["dataloader_num_workers"] = 1
    return chosen


@st.composite
def logging(draw: st.DrawFn) -> dict[str, Any]:
    """When to log: every 1 to 3 steps and perhaps the first, at the end of each epoch, or only at the end."""
    strategy = draw(st.sampled_from(("steps", "epoch", "no")))
    if strategy != "steps":
        return {"logging_strategy": strategy}
    return {"logging_steps": draw(st.integers(1, 3)), "logging_first_step": draw(st.booleans())}


@st.composite
def saving(draw: st.DrawFn) -> dict[str, Any]:
    """When to save: every 1 to 4 steps or at the end of each epoch."""
    if draw(st.booleans()):
        return {"save_strategy": "epoch"}
    return {"save_strategy": "steps", "save_steps": draw(st.integers(1, 4))}


@st.composite
def evaluating(draw: st.DrawFn) -> tuple[int, dict[str, Any]]:
    """How many evaluation rows, and when they are evaluated: mostly never, every 1 to 3 steps, at each epoch's end."""
    strategy = draw(st.sampled_from(("no", "no", "steps", "epoch")))
    if strategy == "no":
        return 0, {}
    chosen: dict[str, Any] = {"eval_strategy": strategy, "per_device_eval_batch_size": draw(st.integers(1, 4))}
    if strategy == "steps":
        chosen["eval_steps"] = draw(st.integers(1, 3))
    return draw(st.integers(1, 6)), chosen


@st.composite
def _settings(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of a DataSpec and TrainingArguments that fit each other. Each run saves, so that it can be resumed."""
    data = draw(rows())
    data["eval_rows"], evaluation = draw(evaluating())
    chosen = {**draw(arguments()), **draw(logging()), **draw(saving()), **evaluation}
    if chosen["dataloader_drop_last"] and data["rows"] < chosen["per_device_train_batch_size"]:
        chosen["dataloader_drop_last"] = False  # not one batch would be left
    if chosen["max_steps"] is None:
        # As many rows as make at most ten steps an epoch.
        window = chosen["per_device_train_batch_size"] * chosen["gradient_accumulation_steps"]
        data["rows"] = min(data["rows"], 10 * window)
    return data, chosen


@st.composite
def run_specs(draw: st.DrawFn, route: str | None = None) -> RunSpec:
    """Runs of a LoRA on a Llama, through `route` or either route, which the reference makes as well."""
    data, chosen = draw(_settings())
    adapter = {
        "route": route or draw(st.sampled_from((GET, ADD))),
        "config": draw(lora()),
        "seed": draw(st.integers(0, 3)),
    }
    model = draw(llamas()) | draw(packed())
    if "quantization" in model:
        # On a CPU with AVX512-BF16 bitsandbytes repacks the base for evaluation, of which EVAL-04 has a case of its own.
        data["eval_rows"] = 0
        chosen = {name: value for name, value in chosen.items() if "eval" not in name}
    return RunSpec().but(model=model, adapter=adapter, data=data, **chosen)


@st.composite
def lives(draw: st.DrawFn, route: str) -> RunSpec:
    """Where a life (harness.runs.lifecycle) begins: a LoRA on a Llama, and rows to train and to evaluate it on."""
    adapter = {"route": route, "config": draw(lora()), "seed": draw(st.integers(0, 3))}
    data = {"rows": draw(st.integers(2, 12)), "length": 8, "min_length": draw(st.sampled_from((8, 3))), "eval_rows": 3}
    return RunSpec().but(
        model=draw(llamas()),
        adapter=adapter,
        data=data,
        seed=draw(st.integers(0, 9)),
        optim=draw(st.sampled_from(("adamw_torch_fused", "sgd"))),
        bf16=draw(st.booleans()),
        activation_checkpointing=draw(st.booleans()),
    )


#: What a life's verbs are done with, by the names of their arguments.
_WHICH = {"which": st.integers(0, 5)}
VERBS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "train": {
        "steps": st.integers(1, 4),
        "batch": st.integers(1, 3),
        "window": st.integers(1, 2),
        "every": st.integers(1, 3),
        "limit": st.integers(0, 2),
    },
    "resume": _WHICH,
    "save": {},
    "reload": _WHICH,
    "add": {"r": st.sampled_from((1, 2, 4)), "seed": st.integers(0, 3)},
    "switch": _WHICH,
    "delete": _WHICH,
    "disable": {},
    "merge": {"saving": st.booleans()},
    "evaluate": {"batch": st.integers(1, 3)},
}


@st.composite
def any_adapter(draw: st.DrawFn) -> RunSpec:
    """The plain run of any row of METHODS on any row of FAMILIES, through each route that takes it."""
    route = draw(st.sampled_from((GET, ADD)))
    name = draw(st.sampled_from(sorted(METHODS, key=lambda name: name != "lora")))
    fitting = [family for family in FAMILIES if misfit(family, name, add_adapter=route == ADD) is None]
    if not fitting:
        route, fitting = GET, [family for family in FAMILIES if misfit(family, name, add_adapter=False) is None]
    family = draw(st.sampled_from(fitting))
    base, method = FAMILIES[family], METHODS[name]
    config = method.fields(base)
    if "r" in config:
        # GraLoRA cuts its rank into blocks.
        config["r"] = draw(st.sampled_from([r for r in (1, 2, 4, 8) if r % config.get("gralora_k", 1) == 0]))
    return RunSpec().but(
        model={"family": family, "config": {base.layers: draw(st.integers(1, 2))}, "seed": draw(st.integers(0, 3))},
        adapter={"route": route, "peft_type": method.peft_type, "config": config, "seed": draw(st.integers(0, 3))},
        data={"task": base.task},
    )


@st.composite
def any_specs(draw: st.DrawFn) -> RunSpec:
    """Runs of any row of METHODS on any row of FAMILIES, through each route that takes it."""
    data, chosen = draw(_settings())
    spec = draw(any_adapter())
    return spec.but(data=data, **_that_fit(spec, chosen))


#: How the names of peft's methods end that put virtual tokens before those of a row.
_VIRTUAL = "_TUNING"


def _that_fit(spec: RunSpec, chosen: dict[str, Any]) -> dict[str, Any]:
    """The TrainingArguments without those that upstream says do not go together with the spec's model or adapter."""
    fitting = dict(chosen)
    if spec.data.task != CAUSAL or spec.adapter.peft_type.endswith(_VIRTUAL):
        fitting["label_smoothing_factor"] = 0.0  # which is about the next token, and not about virtual ones (LOSS-06)
    if spec.adapter.peft_type == "PREFIX_TUNING":
        fitting["activation_checkpointing"] = False
    return fitting


@st.composite
def spread_specs(draw: st.DrawFn) -> RunSpec:
    """Runs as `any_specs` in two processes, such that one process makes the same: without dropout, the rows dealt evenly.

    The steps are SGD's: AdamW makes a whole one of a gradient that is zero but for rounding.
    """
    spec = draw(any_adapter())
    batch, window = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    data: dict[str, Any] = {
        "rows": 2 * batch * window * draw(st.integers(1, 3)),
        "length": 8,
        "seed": draw(st.integers(0, 3)),
    }
    if FAMILIES[spec.model.family].normalises:
        data |= {"min_length": draw(st.sampled_from((None, 3))), "ignored": draw(st.sampled_from((0.0, 0.3)))}
    chosen = {
        "max_steps": draw(st.integers(1, 3)),
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": window,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": draw(st.sampled_from(("linear", "cosine"))),
        "weight_decay": draw(st.sampled_from((0.0, 0.1))),
        "max_grad_norm": draw(st.sampled_from((1.0, 0.0, 0.1))),
        "label_smoothing_factor": draw(st.sampled_from((0.0, 0.1))),
        "activation_checkpointing": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }
    launch = {"strategy": draw(st.sampled_from(("ddp", "fsdp2", "loaded", "zero2", "zero3"))), "ranks": 2}
    return spec.but(data=data, launch=launch, **_that_fit(spec, chosen))
