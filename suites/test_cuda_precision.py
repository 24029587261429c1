"""Precision and determinism, as far as only a GPU shows them: gradient scaler, TF32, compiled kernels, generators."""

from typing import Any

import pytest

from harness import compat
from harness.laws import checkpoint, frozen, precision, quantized, resume, scaler
from harness.laws.equal import equal_runs
from harness.runs.scenarios import PLAIN, RANDOM_B, STILL, by_route, cases, continued, over, saving
from harness.suites.test_rng import determinism_undone
from harness.tolerance import COMPILED
from harness.verdict import both, same

pytestmark = [pytest.mark.usefixtures("cuda")]

# ---- fp16=True ----

#: Each step is saved, so that the scaler and the adapter of each step can be read.
FP16 = saving(PLAIN.but(fp16=True, max_steps=4, data={"rows": 16}), every=1)
BASES = {"float16-base": FP16.but(model={"dtype": "float16"}), "float32-base": FP16}
#: The gradient of step 2 overflows, and no other.
OVERFLOW = FP16.but(trainer={"compute_loss_func": "harness.fixtures.overflow:loss"})


@pytest.mark.clause("AMP-05")
@over(by_route(BASES))
def test_fp16_trains_an_adapter(trace, judge):
    judge(both(quantized.learns(trace), frozen.adapter_moved(trace), frozen.base_frozen(trace)))


@pytest.mark.clause("AMP-04")
@over(BASES)
def test_fp16_keeps_the_adapter_of_get_peft_model_in_float32(trace, judge):
    judge(precision.adapter_dtypes(trace, "float32"))


@pytest.mark.clause("AMP-06")
@over(BASES | {"overflow": OVERFLOW})
def test_each_checkpoint_has_the_scaler(trace, judge):
    judge(scaler.saved(trace, scaler.states(trace)))


def from_step(spec, step):
    return continued(spec, step, every=1)


@pytest.mark.clause("AMP-06")
@cases(
    {f"{name}/step-2": from_step(spec, 2) for name, spec in BASES.items()}
    # One step after the overflow, the scale differs from the initial one.
    | {f"overflow/step-{step}": from_step(OVERFLOW, step) for step in (2, 3)}
)
def test_a_resumed_run_goes_on_with_the_scaler(spec, train, judge):
    judge(resume.continues(train(spec), train(spec.first_leg()), after=spec.resume.checkpoint))


@pytest.mark.clause("AMP-07")
@over(
    {
        "adamw_torch": OVERFLOW.but(optim="adamw_torch"),
        "adamw_torch_fused": OVERFLOW.but(optim="adamw_torch_fused"),
        "sgd": OVERFLOW.but(optim="sgd"),
    }
)
def test_a_step_that_overflows_is_skipped(trace, judge):
    judge(scaler.overflow_skipped(trace, scaler.states(trace), at=2))


#: The adapter does not change (learning rate 0), so each step computes the same in every precision.
STAYS = saving(STILL.but(lora=RANDOM_B, model={"config": {"hidden_size": 256}}), every=1)
CLIPPED = {"clipped": STAYS.but(fp16=True, max_grad_norm=0.1), "not-clipped": STAYS.but(fp16=True, max_grad_norm=100.0)}


@pytest.mark.clause("AMP-08")
@cases(CLIPPED)
def test_norm_and_clipping_are_of_unscaled_gradients(spec, train, judge):
    trace = train(spec)
    plain = train(spec.but(fp16=None))
    judge(both(scaler.clips_unscaled(trace, scaler.states(trace)), scaler.rounds_only(trace, plain)))


# ---- tf32 ----


@pytest.mark.clause("AMP-11")
@cases({"still": STAYS.but(tf32=True)})
def test_tf32_rounds(spec, train, judge):
    plain = train(spec.but(tf32=None))
    trace = train(spec)
    judge(scaler.rounds_only(trace, plain))


@pytest.mark.clause("AMP-11")
@cases({"switched-off": STAYS.but(tf32=False)})
def test_without_tf32_the_run_is_the_plain_one(spec, train, judge):
    plain = train(spec.but(tf32=None))
    trace = train(spec)
    judge(equal_runs(trace, plain))


@pytest.mark.clause("AMP-11")
@cases({"switched-off/compiled": STAYS.but(tf32=False, torch_compile=True)})
def test_without_tf32_compiling_does_not_switch_it_on(spec, upstream, tmp_path, judge):
    import torch

    try:
        upstream.build(spec, tmp_path)
        judge(same("torch's precision of float32 products", torch.get_float32_matmul_precision(), "highest"))
    finally:
        compat.forget_precision()


# ---- the same run ----


@pytest.mark.clause("RNG-05")
@cases({"twice": FP16.but(full_determinism=True), "twice/float32": PLAIN.but(max_steps=4, full_determinism=True)})
def test_full_determinism_makes_the_same_run_twice(spec, train, judge):
    with determinism_undone():
        judge(equal_runs(train(spec, again=True), train(spec)))


CHECKPOINTING: dict[str, Any] = {
    "activation_checkpointing": True,
    "activation_checkpointing_kwargs": {"use_reentrant": False},
}
TWICE = {
    "fp16": BASES["float16-base"],
    "bf16": FP16.but(fp16=None, bf16=True),
    "bf16/checkpointing": FP16.but(fp16=None, bf16=True, **CHECKPOINTING),
    "nf4/bf16/checkpointing": FP16.but(
        model={"quantization": "nf4", "prepare_for_kbit": True, "dtype": "bfloat16"},
        fp16=None,
        bf16=True,
        activation_checkpointing=True,
    ),
}


@pytest.mark.clause("GEN-02")
@cases({f"{name}/twice": spec for name, spec in TWICE.items()})
def test_the_same_run_twice(spec, train, judge):
    judge(equal_runs(train(spec, again=True), train(spec)))


@pytest.mark.clause("RES-01")
@cases({f"{name}/step-2": from_step(spec, 2) for name, spec in TWICE.items() if name != "fp16"})
def test_half_precision_resumes_with_dropout(spec, train, judge):
    judge(resume.continues(train(spec), train(spec.first_leg()), after=2))


@pytest.mark.clause("FRZ-01")
@over({name: TWICE[name] for name in ("fp16", "nf4/bf16/checkpointing")})
def test_the_base_is_bit_identical(trace, judge):
    judge(frozen.base_frozen(trace))


# ---- torch_compile=True ----

#: tf32=False: compiling would switch TF32 on by itself, and its rounding hides other differences. It does so even then
#: (AMP-11), but not in float64.
EAGER = saving(PLAIN.but(lora={"lora_dropout": 0.0}, max_steps=4, tf32=False), every=2)
DOUBLE = EAGER.but(model={"dtype": "float64"})


@pytest.mark.clause("LOOP-14")
@cases({"float32": EAGER.but(torch_compile=True), "float64": DOUBLE.but(torch_compile=True)})
def test_a_compiled_run_is_the_eager_one(spec, train, judge):
    judge(equal_runs(train(spec), train(spec.but(torch_compile=None)), within=COMPILED))


@pytest.mark.clause("LOOP-14")
@over({"float32/files": EAGER.but(torch_compile=True)})
def test_compiling_does_not_show_in_a_checkpoint(trace, judge):
    judge(both(checkpoint.clean_keys(trace), checkpoint.adapter_only(trace)))
