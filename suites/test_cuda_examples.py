"""Two runs as users write them, at the shape of Llama-2-7B, on one GPU: LoRA in fp16, and QLoRA."""

import pytest

from harness.fixtures import tensor_shapes
from harness.fixtures.on_device import LLAMA2_7B
from harness.laws import checkpoint, device_memory, embeddings, frozen, precision, quantized, resume
from harness.runs.scenarios import PLAIN, cases, continued, over, saving
from harness.spec import ADD, GET
from harness.suites.test_rng import determinism_undone
from harness.verdict import both

pytestmark = [pytest.mark.usefixtures("gpu_memory")]

BASE = PLAIN.but(
    model={"family": "harness.fixtures.on_device:llama", "config": LLAMA2_7B},
    data={"rows": 64, "length": 512, "vocab_size": LLAMA2_7B["vocab_size"]},
    max_steps=4,
    learning_rate=2e-4,
)
#: LoRA r=16 on q_proj and v_proj by add_adapter, fp16=True, on a base loaded in float16.
LORA = saving(
    BASE.but(
        model={"dtype": "float16"},
        adapter={"route": ADD},
        lora={"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
        fp16=True,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
    ),
    every=2,
)
#: The same by get_peft_model, which makes the adapter float32, and by add_adapter in bfloat16.
LORA_GET = LORA.but(adapter={"route": GET})
LORA_BF16 = LORA.but(model={"dtype": "bfloat16"}, fp16=None, bf16=True)
#: QLoRA r=64 on peft's default modules for the model type: NF4, bfloat16 compute, activation checkpointing.
QLORA = saving(
    BASE.but(
        model={"dtype": "bfloat16", "quantization": "nf4", "prepare_for_kbit": True},
        lora={"r": 64, "lora_alpha": 16, "target_modules": None},
        bf16=True,
        activation_checkpointing=True,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=16,
    ),
    every=2,
)
WORKS = {"lora-7b": LORA_GET, "qlora-7b": QLORA}


@pytest.mark.clause("AMP-05")
@over({f"lora-7b/{ADD}": LORA, "lora-7b": LORA_GET})
def test_lora_in_fp16_trains(trace, judge):
    judge(both(quantized.learns(trace), frozen.adapter_moved(trace), device_memory.throughput(trace)))


@pytest.mark.clause("QLORA-01")
@over({"qlora-7b": QLORA})
def test_qlora_trains(trace, judge):
    packed = quantized.packed(trace, tensor_shapes.linears(LLAMA2_7B))
    judge(both(packed, quantized.learns(trace), frozen.adapter_moved(trace), device_memory.throughput(trace)))


@pytest.mark.clause("QLORA-02")
@over({"qlora-7b": QLORA})
def test_no_target_modules_are_those_of_llama(trace, judge):
    judge(quantized.adapts(trace, tensor_shapes.lora(("q_proj", "v_proj"), r=64, config=LLAMA2_7B)))


@pytest.mark.clause("AMP-04")
@over(WORKS)
def test_the_adapter_is_float32(trace, judge):
    judge(precision.adapter_dtypes(trace, "float32"))


@pytest.mark.clause("FRZ-01")
@over(WORKS)
def test_the_base_is_bit_identical(trace, judge):
    judge(frozen.base_frozen(trace))


@pytest.mark.clause("FRZ-02")
@over(WORKS)
def test_the_optimizer_holds_the_adapter(trace, judge):
    judge(frozen.optimizer_holds_trainables(trace))


@pytest.mark.clause("CKPT-04")
@over(WORKS)
def test_an_adapter_file_is_its_tensors_and_a_header(trace, judge):
    judge(checkpoint.size_law(trace))


@pytest.mark.clause("CKPT-25")
@over(WORKS)
def test_a_checkpoint_holds_exactly_the_trained_tensors(trace, judge):
    judge(checkpoint.adapter_only(trace))


@pytest.mark.clause("QLORA-07")
@over({"qlora-7b": QLORA})
def test_the_file_holds_the_adapter_in_float32_alone(trace, judge):
    expected = tensor_shapes.lora(("q_proj", "v_proj"), r=64, config=LLAMA2_7B)
    judge(embeddings.tensors_saved(trace, expected, dtype="F32"))


@pytest.mark.clause("MEM-02")
@over(WORKS)
def test_the_peak_is_within_the_bound(trace, judge):
    judge(device_memory.peak_within_bound(trace))


def resumed(spec):
    """Return two steps of the run, the second one resumed.

    full_determinism is on: without it, attention's backward pass adds to a row from several blocks of 64 keys in any order.
    """
    return continued(spec.but(max_steps=2, full_determinism=True), 1, every=1)


@pytest.mark.clause("RES-01")
@cases({f"{name}/step-1": resumed(spec) for name, spec in WORKS.items()})
def test_a_resumed_run_is_the_run_that_was_interrupted(spec, train, judge):
    with determinism_undone():
        judge(resume.continues(train(spec), train(spec.first_leg()), after=1))


@pytest.mark.clause("RES-02")
@cases({f"{ADD}/lora-7b/bfloat16/step-1": resumed(LORA_BF16)})
def test_add_adapter_resumes_from_its_own_checkpoint(spec, train, judge):
    with determinism_undone():
        judge(resume.continues(train(spec), train(spec.first_leg()), after=1))
