"""FRZ: what is trained, what stays frozen, in any run."""

import pytest

from harness.fixtures import models, tensor_shapes
from harness.laws import equal, frozen
from harness.runs.scenarios import PLAIN, SAVING, SCENARIOS, by_route, cases, over
from harness.session.state import skip_if
from harness.spec import ModelSpec
from harness.verdict import both, raises

#: Reentrant checkpointing gives no gradients if its inputs need none, and those of a frozen base need none.
REENTRANT = PLAIN.but(activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": True})
HEAD = {"modules_to_save": ["lm_head"]}
#: Runs that differ in what is trained beside A and B, and in the base.
ALL = by_route({**SCENARIOS, **SAVING, "reentrant-head": REENTRANT.but(lora=HEAD)})


@pytest.mark.clause("FRZ-01")
@over(ALL)
def test_base_is_bit_identical(trace, judge):
    judge(frozen.base_frozen(trace))


@pytest.mark.clause("FRZ-02")
@over(by_route(SCENARIOS))
def test_the_optimizer_holds_the_lora_alone(trace, judge):
    # 8 * (64 + 64) for each q_proj and 8 * (64 + 32) for each v_proj: 3584 numbers in two layers.
    judge(frozen.groups_hold(trace, tensor_shapes.lora()))


@pytest.mark.clause("FRZ-02")
@over({f"universal/{name}": spec for name, spec in ALL.items()})
def test_the_optimizer_holds_what_requires_gradients(trace, judge):
    judge(frozen.optimizer_holds_trainables(trace))


@pytest.mark.clause("FRZ-03")
@over(ALL)
def test_the_base_gets_no_gradient(trace, judge):
    judge(frozen.base_without_gradients(trace))


@pytest.mark.clause("FRZ-09")
@cases(
    by_route(
        {
            name: PLAIN.but(max_steps=3, weight_decay=0.1, adapter={"name": name})
            for name in ("other", "debias", "norm", "my_norm", "layernorm", "RMSNorm")
        }
    )
)
def test_weight_decay_does_not_depend_on_the_adapters_name(spec, train, judge):
    named, plain = train(spec), train(spec.but(adapter={"name": "default"}))
    judge(both(frozen.groups_hold(named, tensor_shapes.lora()), equal.equal_runs(named, plain)))


@pytest.mark.clause("FRZ-10")
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_base_without_adapters_is_refused(quantization, upstream, tmp_path, judge):
    spec = PLAIN.but(model={"quantization": quantization})
    skip_if(upstream.unsupported(spec))
    base = models.build(ModelSpec(quantization=quantization))
    judge(
        raises(
            "Trainer() of a quantized base",
            ValueError,
            "cannot perform fine-tuning on purely quantized models",
            lambda: upstream.build(spec, tmp_path, model=base),
        )
    )


# ---- the update reaches every tensor ----


@pytest.mark.clause("FRZ-13")
@over(ALL | by_route({"reentrant": REENTRANT}))
def test_the_update_reaches_every_tensor(trace, judge):
    judge(both(frozen.gradients_arrive(trace), frozen.adapter_moved(trace)))


#: Runs in which gradients can stop at inputs that need none, while a trained head still makes the loss fall.
FEW_STEPS = {
    "plain": PLAIN,
    "reentrant": REENTRANT,
    "reentrant-head": REENTRANT.but(lora=HEAD),
    "not-reentrant-head": SCENARIOS["checkpointing"].but(lora=HEAD),
}


@pytest.mark.clause("FRZ-13")
@over(by_route({f"one-step/{name}": spec.but(max_steps=1) for name, spec in FEW_STEPS.items()}))
def test_one_step_moves_every_lora_b(trace, judge):
    judge(frozen.adapter_moved(trace, stuck=("lora_A.weight",)))


@pytest.mark.clause("FRZ-13")
@over(by_route({f"two-steps/{name}": spec.but(max_steps=2) for name, spec in FEW_STEPS.items()}))
def test_two_steps_move_every_lora_a(trace, judge):
    judge(frozen.adapter_moved(trace))
