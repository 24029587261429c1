"""suites/test_cuda_examples.py at a tiny shape, on a CPU in bfloat16: every check of it runs, and the formulas hold."""

import copy

import pytest

from harness.fixtures import models
from harness.fixtures.on_device import LLAMA2_7B
from harness.laws import device_memory
from harness.laws.equal import differences
from harness.spec import ModelSpec
from harness.suites import test_cuda_examples as examples
from tests.faults import verdict_of

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 256,
}
TINY = {**LLAMA2_7B, **SMALL, "num_key_value_heads": 4}


def tiny(spec):
    """An example small enough for a CPU, where float16 is bfloat16."""
    half = {"dtype": "bfloat16", "config": TINY}
    return spec.but(
        model=half,
        data={"rows": 64, "length": 16, "vocab_size": 256},
        fp16=None,
        bf16=True,
        resume=spec.resume,
        learning_rate=1e-2,
    )


@pytest.fixture
def shape(monkeypatch):
    """The checks of the suite expect the tiny shape."""
    monkeypatch.setattr(examples, "LLAMA2_7B", TINY)


CHECKS = [
    (examples.test_lora_in_fp16_trains, "lora-7b"),
    (examples.test_qlora_trains, "qlora-7b"),
    (examples.test_no_target_modules_are_those_of_llama, "qlora-7b"),
    (examples.test_the_file_holds_the_adapter_in_float32_alone, "qlora-7b"),
    *(
        (check, name)
        for name in examples.WORKS
        for check in (
            examples.test_the_adapter_is_float32,
            examples.test_the_base_is_bit_identical,
            examples.test_the_optimizer_holds_the_adapter,
            examples.test_an_adapter_file_is_its_tensors_and_a_header,
            examples.test_a_checkpoint_holds_exactly_the_trained_tensors,
        )
    ),
]


@pytest.mark.parametrize("name", examples.WORKS)
def test_every_check_of_an_example_holds_when_it_is_tiny(name, shape, runs, tmp_path):
    if reason := runs.subject.unsupported(examples.WORKS[name]):
        pytest.skip(reason)
    trace = runs.train(tiny(examples.WORKS[name]))
    verdicts = {check.__name__: verdict_of(check, runs, tmp_path, trace=trace) for check, of in CHECKS if of == name}
    assert {one: verdict.seen for one, verdict in verdicts.items() if not verdict.holds} == {}
    resumed = examples.resumed(tiny(examples.WORKS[name])).but(
        full_determinism=None, resume=examples.resumed(tiny(examples.WORKS[name])).resume
    )
    assert verdict_of(examples.test_a_resumed_run_is_the_run_that_was_interrupted, runs, tmp_path, spec=resumed).holds


def test_a_7b_base_is_the_size_that_the_formula_says(trace_of_7b):
    parts = device_memory.parts(trace_of_7b)
    assert parts["the base"] == 2 * 6_738_415_616
    assert parts["the adapter"] == 4 * 5 * 8_388_608


@pytest.fixture
def trace_of_7b():
    from harness.fixtures import tensor_shapes
    from tests.traces import made_up

    trace = made_up(examples.LORA_GET)
    adapter = tensor_shapes.lora(r=16, config=LLAMA2_7B)
    h, vocabulary = LLAMA2_7B["hidden_size"], LLAMA2_7B["vocab_size"]
    base = {f"{path}.weight": list(shape) for path, shape in tensor_shapes.linears(LLAMA2_7B).items()}
    base |= {"model.embed_tokens.weight": [vocabulary, h], "lm_head.weight": [vocabulary, h]}
    base |= {f"norm {index}": [h] for index in range(65)}
    trace.parameters = {name: ["float16", shape] for name, shape in base.items()}
    trace.parameters |= {name: ["float32", shape] for name, shape in adapter.items()}
    trace.trainable = list(adapter)
    trace.memory_bytes = 30 << 30
    for step in trace.steps:
        step.seconds = 0.5
    return trace


def test_a_peak_within_the_bound_holds_and_one_with_a_second_base_does_not(trace_of_7b):
    assert device_memory.peak_within_bound(trace_of_7b).holds
    fat = copy.deepcopy(trace_of_7b)
    # A copy of the base in float32, and its gradients.
    fat.memory_bytes += 4 * 6_738_415_616
    (sentence,) = device_memory.peak_within_bound(fat).seen
    assert sentence.startswith("55.10 GiB at the peak, expected ")
    assert not device_memory.peak_within_bound(copy_of(trace_of_7b, memory_bytes=0)).holds


def copy_of(trace, **changes):
    other = copy.deepcopy(trace)
    for name, value in changes.items():
        setattr(other, name, value)
    return other


def test_checkpointing_and_packing_leave_no_room_for_an_unpacked_base(trace_of_7b):
    packed = copy_of(trace_of_7b, spec=examples.QLORA)
    packed.parameters = {
        name: ["uint8", [shape[0] * shape[1] // 2, 1]] if "_proj.weight" in name else [dtype, shape]
        for name, (dtype, shape) in packed.parameters.items()
    }
    packed.memory_bytes = 5 << 30
    assert device_memory.peak_within_bound(packed).holds
    packed.memory_bytes += 2 * 6_738_415_616
    assert not device_memory.peak_within_bound(packed).holds


def test_tokens_a_second_are_those_of_the_fastest_step_after_the_first(trace_of_7b):
    trace_of_7b.steps[0].seconds, trace_of_7b.steps[2].seconds = 0.1, 0.25
    # Two rows of 512 tokens.
    assert device_memory.tokens_per_second(trace_of_7b) == 4096.0
    assert device_memory.throughput(trace_of_7b).measured == {"tokens_per_second": 4096.0, "peak_gib": 30.0}
    del trace_of_7b.steps[1:]
    assert not device_memory.throughput(trace_of_7b).holds


def test_a_model_made_on_the_device_is_quantized_to_the_same_bits(monkeypatch):
    pytest.importorskip("bitsandbytes", reason="quantized bases need bitsandbytes")
    spec = ModelSpec(family="harness.fixtures.on_device:llama", dtype="bfloat16", config=TINY, quantization="nf4")
    import torch

    saved = models.build(spec).state_dict()
    # What a GPU would have: parameters that are not on the CPU.
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", True, raising=False)
    monkeypatch.setattr("harness.fixtures.quantized._save", None)
    here = models.build(spec).state_dict()
    assert differences(here, saved, 0.0, "") == []
