"""AMP: mixed precision on a CPU."""

from typing import Any

import pytest
import torch

from harness import lacking
from harness.fixtures import data
from harness.laws import precision
from harness.laws.equal import differences
from harness.laws.resume import continues
from harness.runs.scenarios import PLAIN, by_route, cases, over, spec_for
from harness.session.state import skip_if
from harness.spec import ADD
from harness.verdict import both, raises, same, verdict

#: Rows of unequal lengths. Every step is saved, so that the adapter of every step can be read.
BF16 = PLAIN.but(
    bf16=True, lora={"lora_dropout": 0.0}, data={"min_length": 6}, max_steps=4, save_strategy="steps", save_steps=1
)
SHORT = PLAIN.but(max_steps=2)
EVALUATED = SHORT.but(data={"eval_rows": 4}, eval_strategy="steps", eval_steps=1)


# ---- bf16=True ----


@pytest.mark.clause("AMP-01")
@over(by_route({"float32-base": BF16}) | {"bfloat16-base": BF16.but(model={"dtype": "bfloat16"})})
def test_bf16_computes_what_autocast_does(trace, judge):
    judge(precision.plain_autocast(trace))


@pytest.mark.clause("AMP-01")
@over(
    by_route({"float32-base": BF16})
    | {
        "bfloat16-base": BF16.but(model={"dtype": "bfloat16"}),
        "dropout": BF16.but(lora={"lora_dropout": 0.1}),
        "dora": BF16.but(lora={"use_dora": True}),
        "modules-to-save": BF16.but(lora={"modules_to_save": ["lm_head"]}),
    }
)
def test_bf16_keeps_the_adapter_in_float32(trace, judge):
    judge(precision.adapter_dtypes(trace, "float32"))


@pytest.mark.clause("AMP-01")
@cases(by_route({"float32-base": BF16}))
def test_bf16_returns_float32(spec, upstream, tmp_path, judge):
    trainer, seen = upstream.build(spec, tmp_path), set()
    # The logits, or what a model of somebody's returns in their place, such as log-probabilities.
    trainer.model.register_forward_hook(lambda module, args, output: seen.update(floating(output.values())))
    trainer.train()
    judge(same("dtypes of the model's outputs in training", seen, {"torch.float32"}))


def floating(values):
    """Return the dtypes of the tensors of floating-point numbers among some values."""
    return {str(one.dtype) for one in values if isinstance(one, torch.Tensor) and one.is_floating_point()}


@pytest.mark.clause("AMP-02")
@cases(by_route({"float32-base": BF16.but(save_strategy="no")}))
def test_after_bf16_training_the_model_computes_in_float32_again(spec, upstream, tmp_path, judge):
    trainer = upstream.build(spec, tmp_path / "trained")
    trainer.train()
    untouched = upstream.build(spec.but(bf16=None), tmp_path / "untouched").model
    untouched.load_state_dict(trainer.model.state_dict())
    seen, wanted = ({"the logits": logits(model, spec)} for model in (trainer.model, untouched))
    judge(verdict("the logits are those of the same weights in float32", differences(seen, wanted, 0.0, "")))


def logits(model, spec):
    """Return a model's output for the first rows, outside any autocast."""
    rows = data.rows(spec.data)[0][:4]
    device = next(model.parameters()).device
    inputs = {
        name: torch.tensor([row[name] for row in rows], device=device) for name in ("input_ids", "attention_mask")
    }
    with torch.no_grad():
        return model.eval()(**inputs)["logits"].cpu()


@pytest.mark.clause("AMP-12")
@pytest.mark.parametrize("unwrapped", [pytest.param(False, id="kept"), pytest.param(True, id="unwrapped")])
@cases(by_route({"bf16-again": BF16.but(save_strategy="no")}))
def test_a_second_trainer_goes_on_in_bf16(spec, unwrapped, upstream, tmp_path, judge):
    judge(precision.trained_again(upstream, spec, spec, tmp_path, unwrapped))


@pytest.mark.clause("AMP-12")
@cases(by_route({"bf16-after-float32": BF16.but(save_strategy="no")}))
def test_a_second_trainer_trains_in_its_own_precision(spec, upstream, tmp_path, judge):
    judge(precision.trained_again(upstream, spec.but(bf16=None), spec, tmp_path))


# ---- fp16=True ----


@pytest.mark.clause("AMP-03")
@cases(by_route({"fp16": SHORT.but(fp16=True)}))
def test_fp16_on_a_cpu_is_not_silently_float32(spec, runs, train, judge):
    if runs.device != "cpu":
        pytest.skip(f"the clause is about a CPU, this run is on {runs.device}")
    judge(precision.not_silently_float32(train(spec), train(spec.but(fp16=None)), "fp16"))


# ---- the adapter's own dtype ----


def half(dtype):
    """Return, by name, the ways to add an adapter to a base of this dtype."""
    spec = SHORT.but(model={"dtype": dtype}, save_strategy="steps", save_steps=1)
    return by_route({dtype: spec}) | {
        f"{dtype}/not-upcast": spec.but(adapter={"options": {"autocast_adapter_dtype": False}}),
        f"{dtype}/dora": spec.but(lora={"use_dora": True}),
        # Its projections are buffers: they are saved and not trained.
        f"{dtype}/vera": spec_for("llama", "vera").but(model={"dtype": dtype}),
    }


@pytest.mark.clause("AMP-04")
@over(half("bfloat16") | half("float16"))
def test_an_adapter_is_upcast_by_get_peft_model_only(trace, judge):
    judge(precision.adapter_dtypes(trace, precision.adapter_dtype(trace.spec)))


# ---- arguments, and full evaluation in half precision ----


@pytest.mark.clause("AMP-09")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"fp16": True, "bf16": True}, "At most one of fp16 and bf16 can be True", id="both"),
        pytest.param(
            {"fp16_full_eval": True, "bf16_full_eval": True}, "At most one of fp16 and bf16", id="both-for-evaluation"
        ),
    ],
)
def test_two_half_precisions_are_refused(changes, words, upstream, tmp_path, judge):
    judge(raises("TrainingArguments", ValueError, words, lambda: upstream.arguments(SHORT.but(**changes), tmp_path)))


@pytest.mark.clause("AMP-09")
@pytest.mark.parametrize("argument", ["bf16", "bf16_full_eval"])
def test_bf16_without_a_device_for_it_is_refused(argument, upstream, tmp_path, judge):
    from transformers import TrainingArguments

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device, so nothing is missing")
    skip_if(lacking.bf16_refusal())
    arguments: dict[str, Any] = {argument: True}
    judge(
        raises(
            f"TrainingArguments({argument}=True) without use_cpu",
            ValueError,
            "Your setup doesn't support bf16/gpu",
            lambda: TrainingArguments(output_dir=str(tmp_path), **arguments),
        )
    )


FULL_EVAL: dict[str, dict[str, Any]] = {
    "bf16_full_eval": {"bf16_full_eval": True},
    "fp16_full_eval": {"fp16_full_eval": True},
}


@pytest.mark.clause("AMP-09")
@cases(by_route({name: EVALUATED.but(**changes) for name, changes in FULL_EVAL.items()}))
def test_full_evaluation_in_half_precision_leaves_training_alone(spec, train, judge):
    plain = train(spec.but(bf16_full_eval=None, fp16_full_eval=None))
    losses = [[one.metrics.get("eval_loss") for one in trace.evaluations] for trace in (train(spec), plain)]
    judge(both(same("eval_loss of each evaluation in training", *losses), continues(train(spec), plain, after=0)))


@pytest.mark.clause("AMP-09")
@cases({f"{name}/alone": EVALUATED.but(**changes) for name, changes in FULL_EVAL.items()})
def test_an_evaluation_of_its_own_casts_the_model_and_gives_it_back(spec, upstream, tmp_path, judge):
    trainer, seen = upstream.build(spec, tmp_path), set()
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.model.register_forward_hook(lambda *_: seen.update(str(p.dtype) for p in trainer.model.parameters()))
    trainer.evaluate()
    dtype = "torch.bfloat16" if "bf16_full_eval" in spec.arguments else "torch.float16"
    after = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    judge(
        both(
            same("dtypes of the parameters while it evaluates", seen, {dtype}),
            verdict("the model is what it was before", differences(after, before, 0.0, "after the evaluation:")[:1]),
        )
    )


# ---- the adapter's contribution ----

STEPS = PLAIN.but(lora={"lora_dropout": 0.0}, max_steps=3)
#: After three steps of 1e-5 the adapter adds a hundredth of what bfloat16 can tell apart; after three of 1e-2 ten times that.
SMALL, LARGE = STEPS.but(learning_rate=1e-5), STEPS.but(learning_rate=1e-2)


def halves(spec):
    """Return, by name, the ways in which an adapter is computed in bfloat16."""
    base = spec.but(model={"dtype": "bfloat16"})
    return {
        "autocast": spec.but(bf16=True),
        "bfloat16-base": base,
        "bfloat16-base/autocast": base.but(bf16=True),
        "bfloat16-base/add_adapter": base.but(adapter={"route": ADD}),
    }


@pytest.mark.clause("AMP-13")
@cases(
    {"float32/small": SMALL}
    | {f"{name}/small": spec for name, spec in halves(SMALL).items()}
    | {f"{name}/large": spec for name, spec in halves(LARGE).items()}
)
def test_what_an_adapter_adds_is_not_rounded_away(spec, upstream, tmp_path, judge):
    trainer = upstream.build(spec, tmp_path)
    trainer.train()
    autocast = torch.bfloat16 if spec.arguments.get("bf16") else None
    judge(precision.contribution(trainer.model, spec, autocast))
