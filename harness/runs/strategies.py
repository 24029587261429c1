"""Hypothesis strategies that draw training runs. A failure shrinks to fewer steps, layers, rows and a smaller rank.

The simplest value of each choice comes first, since hypothesis shrinks towards the first one.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from harness.fixtures.methods import METHODS, misfit
from harness.fixtures.models import CAUSAL, FAMILIES
from harness.spec import ADD, GET, LORA, RunSpec

#: The linear modules of a Llama layer. A failing example loses the last ones first.
_TARGETS = ("q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

#: Base models that the reference can train, too.
_LLAMAS = ("llama", "llama-tied")


@st.composite
def llamas(draw: st.DrawFn) -> dict[str, Any]:
    """Draw fields of a ModelSpec: a Llama with 1 to 3 layers, tied or not, with or without attention dropout."""
    config: dict[str, Any] = {"num_hidden_layers": draw(st.integers(1, 3))}
    if draw(st.booleans()):
        config["attention_dropout"] = 0.1
    return {"family": draw(st.sampled_from(_LLAMAS)), "config": config, "seed": draw(st.integers(0, 3))}


@st.composite
def packed(draw: st.DrawFn) -> dict[str, Any]:
    """Draw fields of a ModelSpec for a base packed to NF4, or, two times out of three, none.

    The packed base computes in float32 or bfloat16, and is prepared for k-bit training or not.
    """
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
    """Draw fields of a LoraConfig that the reference implements, too."""
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
    """Draw fields of a DataSpec: 3 to 40 rows of 4 to 16 tokens, of equal lengths or not, with ignored labels or not."""
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
    """Draw TrainingArguments that a run in one process on a CPU can have and that the reference implements."""
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
    if draw(st.booleans()):  # the length is given in epochs, not in steps
        chosen |= {"max_steps": None, "num_train_epochs": draw(st.sampled_from((1, 1.5, 2)))}
    if draw(st.integers(0, 15)) == 15:  # rarely: starting the worker process takes longer than the pass over the rows
        chosen["dataloader_num_workers"] = 1
    return chosen


@st.composite
def logging(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the TrainingArguments on logging.

    The run logs every 1 to 3 steps (with or without logging_first_step), at the end of each epoch, or only when it ends.
    """
    strategy = draw(st.sampled_from(("steps", "epoch", "no")))
    if strategy != "steps":
        return {"logging_strategy": strategy}
    return {"logging_steps": draw(st.integers(1, 3)), "logging_first_step": draw(st.booleans())}


@st.composite
def saving(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the TrainingArguments on saving: every 1 to 4 steps, or at the end of each epoch."""
    if draw(st.booleans()):
        return {"save_strategy": "epoch"}
    return {"save_strategy": "steps", "save_steps": draw(st.integers(1, 4))}


@st.composite
def evaluating(draw: st.DrawFn) -> tuple[int, dict[str, Any]]:
    """Draw how many evaluation rows there are, and the TrainingArguments on evaluation.

    Half of the runs evaluate nothing. The others evaluate every 1 to 3 steps, or at the end of each epoch.
    """
    strategy = draw(st.sampled_from(("no", "no", "steps", "epoch")))
    if strategy == "no":
        return 0, {}
    chosen: dict[str, Any] = {"eval_strategy": strategy, "per_device_eval_batch_size": draw(st.integers(1, 4))}
    if strategy == "steps":
        chosen["eval_steps"] = draw(st.integers(1, 3))
    return draw(st.integers(1, 6)), chosen


@st.composite
def _settings(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw fields of a DataSpec and TrainingArguments that fit each other. Each run saves, so that it can be resumed."""
    data = draw(rows())
    data["eval_rows"], evaluation = draw(evaluating())
    chosen = {**draw(arguments()), **draw(logging()), **draw(saving()), **evaluation}
    if chosen["dataloader_drop_last"] and data["rows"] < chosen["per_device_train_batch_size"]:
        chosen["dataloader_drop_last"] = False  # otherwise the run would have no batch
    if chosen["max_steps"] is None:
        # At most ten optimizer steps in an epoch, hence twenty in a run.
        window = chosen["per_device_train_batch_size"] * chosen["gradient_accumulation_steps"]
        data["rows"] = min(data["rows"], 10 * window)
    return data, chosen


@st.composite
def run_specs(draw: st.DrawFn, route: str | None = None) -> RunSpec:
    """Draw runs of a LoRA on a Llama that the reference can train, too.

    - route: GET or ADD; None draws one of them.
    """
    data, chosen = draw(_settings())
    adapter = {
        "route": route or draw(st.sampled_from((GET, ADD))),
        "config": draw(lora()),
        "seed": draw(st.integers(0, 3)),
    }
    model = draw(llamas()) | draw(packed())
    if "quantization" in model:
        # On a CPU with AVX512-BF16 bitsandbytes repacks the base when it is evaluated. EVAL-04 has a case about that.
        data["eval_rows"] = 0
        chosen = {name: value for name, value in chosen.items() if "eval" not in name}
    return RunSpec().but(model=model, adapter=adapter, data=data, **chosen)


@st.composite
def lives(draw: st.DrawFn, route: str) -> RunSpec:
    """Draw how a life (harness.runs.lifecycle) begins: a LoRA on a Llama, and rows to train and to evaluate it on."""
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


#: `which` chooses among what there is (checkpoints, saved directories, adapters), modulo how many there are.
_WHICH = {"which": st.integers(0, 5)}

#: Verb of a life -> its arguments and what each is drawn from (methods of `harness.runs.lifecycle.Life`).
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
    """Draw the default run of any row of METHODS on any row of FAMILIES, through a route that both support."""
    route = draw(st.sampled_from((GET, ADD)))
    name = draw(st.sampled_from(sorted(METHODS, key=lambda name: name != "lora")))
    fitting = [family for family in FAMILIES if misfit(family, name, add_adapter=route == ADD) is None]
    if not fitting:
        route, fitting = GET, [family for family in FAMILIES if misfit(family, name, add_adapter=False) is None]
    family = draw(st.sampled_from(fitting))
    base, method = FAMILIES[family], METHODS[name]
    config = method.fields(base)
    if "r" in config:
        # GraLoRA splits its rank into gralora_k blocks, so the rank must be divisible by that.
        config["r"] = draw(st.sampled_from([r for r in (1, 2, 4, 8) if r % config.get("gralora_k", 1) == 0]))
    return RunSpec().but(
        model={"family": family, "config": {base.layers: draw(st.integers(1, 2))}, "seed": draw(st.integers(0, 3))},
        adapter={"route": route, "peft_type": method.peft_type, "config": config, "seed": draw(st.integers(0, 3))},
        data={"task": base.task},
    )


@st.composite
def any_specs(draw: st.DrawFn) -> RunSpec:
    """Draw runs of any row of METHODS on any row of FAMILIES, with drawn rows and arguments."""
    data, chosen = draw(_settings())
    spec = draw(any_adapter())
    return spec.but(data=data, **_that_fit(spec, chosen))


#: The peft types that put virtual tokens before a row's tokens end in this.
_VIRTUAL = "_TUNING"


def _that_fit(spec: RunSpec, chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the TrainingArguments, without those that upstream excludes for the spec's model or adapter."""
    fitting = dict(chosen)
    if spec.data.task != CAUSAL or spec.adapter.peft_type.endswith(_VIRTUAL):
        # Label smoothing is defined for next-token labels, and does not know of virtual tokens (LOSS-06).
        fitting["label_smoothing_factor"] = 0.0
    if spec.adapter.peft_type == "PREFIX_TUNING":
        fitting["activation_checkpointing"] = False
    return fitting


@st.composite
def spread_specs(draw: st.DrawFn) -> RunSpec:
    """Draw runs in two processes that one process must repeat: any model and method, no dropout, rows that divide evenly.

    The optimizer is SGD. If a gradient is zero but for rounding, AdamW normalises it and makes a step of full size.
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
