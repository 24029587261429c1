"""Products in FP8, computed on a CPU from the same 8 bits: their error, their gradients and the bound on losses."""

import math

import pytest
import torch

from harness.reference.lora import AdapterModel
from harness.reference.settings import LoraConfig
from harness.spec import RunSpec
from harness.throughput import fp8, merged, speed
from harness.throughput.shapes import SHAPES


def matrices():
    draw = torch.Generator().manual_seed(0)
    # Rows of very different sizes, as activations have.
    left = torch.randn(64, 256, generator=draw) * torch.logspace(-4, 3, 64)[:, None]
    return left, torch.randn(96, 256, generator=draw)


def test_each_number_is_within_half_a_unit_of_its_row():
    left, _ = matrices()
    quantized, scale = fp8.quantize_rows(left)
    error = (quantized.float() * scale - left).abs()
    smallest = left.abs().amax(1, keepdim=True) * 2.0**-10 / fp8.LARGEST
    assert quantized.dtype == torch.float8_e4m3fn
    assert bool((error <= fp8.ROUNDING * left.abs() * (1 + 1e-5) + smallest).all())
    # One scale for all rows would lose the small ones.
    assert bool((left / left.abs().max() * fp8.LARGEST).to(fp8.FORMAT)[0].eq(0).any())


def test_a_row_of_zeros_stays_zero():
    quantized, scale = fp8.quantize_rows(torch.zeros(2, 16))
    assert not quantized.float().any()
    assert bool(torch.isfinite(scale).all())


def test_the_error_of_a_product_is_within_its_bounds():
    left, weight = matrices()
    seen = fp8.product(left, *fp8.quantize_rows(weight), torch.float32)
    exact = left.double() @ weight.double().t()
    error = (seen.double() - exact).abs()
    each = (2 * fp8.ROUNDING + fp8.ROUNDING**2) * (left.abs().double() @ weight.abs().double().t())
    assert bool((error <= each * 1.01).all())
    relative = float(error.norm() / exact.norm())
    assert 0.3 * fp8.MEAN_ROUNDING < relative < math.sqrt(2) * fp8.MEAN_ROUNDING


def test_the_gradient_of_the_input_is_that_of_the_weight():
    draw = torch.Generator().manual_seed(1)
    layer = torch.nn.Linear(32, 48, bias=False)
    x = torch.randn(4, 8, 32, generator=draw, requires_grad=True)
    upstream = torch.randn(4, 8, 48, generator=draw)
    fp8.Fp8Linear(layer)(x).backward(upstream.bfloat16())
    exact = upstream @ layer.weight
    assert float(((x.grad - exact).norm() / exact.norm()).detach()) < math.sqrt(2) * fp8.MEAN_ROUNDING + 2**-8


def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    made = AdapterModel(LlamaForCausalLM(config), LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return made


def loss_and_gradients(made):
    tokens = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(2))
    loss = made(labels=tokens, num_items_in_batch=torch.tensor(4 * 31.0), input_ids=tokens)["loss"]
    loss.backward()
    return float(loss), [p.grad for name, p in sorted(made.named_parameters(), key=_of_layer) if "lora_" in name]


def _of_layer(pair):
    return pair[0].replace(".layer.", ".")


def test_merged_projections_compute_the_same():
    plain, changed = model(), model()
    merged.merge(changed)
    assert sum(type(each).__name__ == "Member" for each in changed.modules()) == 10
    (loss, gradients), (other, others) = loss_and_gradients(plain), loss_and_gradients(changed)
    assert loss == pytest.approx(other, abs=2e-6)
    assert len(gradients) == len(others) == 28
    for mine, theirs in zip(gradients, others, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_loss_with_a_base_in_fp8_is_within_its_bound():
    plain, changed = model(), model()
    fp8.in_fp8(changed)
    (loss, gradients), (other, others) = loss_and_gradients(plain), loss_and_gradients(changed)
    bound = fp8.loss_bound(loss, 256, 2, 4 * 31)
    assert 0 < abs(other - loss) < bound < 0.1 * loss
    for mine, theirs in zip(gradients, others, strict=True):
        assert float(torch.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0)) > 0.95


def test_trained_weights_have_no_bound():
    assert fp8.loss_bound(2.0, 32000, 32, 8192) is None


def test_what_cannot_be_in_fp8_is_said():
    spec = SHAPES["7b-2x4096"].spec("cpu")
    assert "GPU" in fp8.unsupported(spec)
    assert "packed" in fp8.unsupported(SHAPES["8b-nf4"].spec("cpu"))
    assert "bfloat16" in fp8.unsupported(RunSpec())
    assert "cover neither" in merged.unsupported(
        RunSpec().but(lora={"target_modules": ["o_proj"], "lora_dropout": 0.0})
    )


def measured(away):
    shape = speed.Measured(SHAPES["tiny"], float32=10.0, bounds={"reference-fp8": 0.05})
    shape.rows = [speed.Row("trainer", loss=10.0), speed.Row("reference-fp8", loss=10.0 + away)]
    return shape


def test_a_row_beyond_its_bound_is_reported():
    assert speed.differing_losses(measured(0.04)) == []
    (sentence,) = speed.differing_losses(measured(0.06))
    assert "reference-fp8 is 0.06 from float32, at most 0.05" in sentence
