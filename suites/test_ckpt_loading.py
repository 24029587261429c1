"""CKPT: adapters loaded with each argument of from_pretrained and load_adapter, and by the classes of AutoPeftModel."""

from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.fixtures import models
from harness.laws import rebuilt
from harness.laws.equal import differences
from harness.runs.scenarios import PLAIN, RANDOM_B
from harness.subjects.hf_trainer import inject, recorded_warnings
from harness.verdict import both, raises, verdict

FIRST = PLAIN.but(lora=RANDOM_B)


def saved(spec, path):
    """Return the logits of the spec's model whose adapter, moved away from the base, is saved at a path."""
    model = inject(models.build(spec.model), spec.adapter)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_" not in name:
                parameter.mul_(1.01)
    model.save_pretrained(path)
    return rebuilt.logits(model, spec)


# ---- low_cpu_mem_usage ----

#: What an adapter has besides the A and B of linear layers.
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"use_dora": True},
    "modules-to-save": {"modules_to_save": ["lm_head"]},
    "trainable-tokens": {"trainable_token_indices": [1, 2]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
}
LOW = {
    f"low-cpu-mem-usage/{name}/{dtype}": FIRST.but(model={"dtype": dtype}, lora=config)
    for name, config in CONFIGS.items()
    for dtype in ("float32", "bfloat16")
}


@pytest.mark.clause("CKPT-29")
@pytest.mark.parametrize("spec", [pytest.param(spec, id=id) for id, spec in LOW.items()])
def test_loading_with_little_memory_loads_the_same(spec, upstream, tmp_path, judge):
    # The file is in float32, as training leaves it.
    saved(spec.but(model={"dtype": "float32"}), tmp_path)
    judge(same_as_without(spec, tmp_path))


def same_as_without(spec, path):
    """Check that low_cpu_mem_usage changes no dtype, no value and no logits."""
    low, plain = (
        peft.PeftModel.from_pretrained(models.build(spec.model), path, low_cpu_mem_usage=low, is_trainable=True)
        for low in (True, False)
    )
    seen, expected = (dict(model.named_parameters()) for model in (low, plain))
    odd = [name for name in expected if expected[name].requires_grad != seen[name].requires_grad]
    found = [f"requires_grad of {name} is {seen[name].requires_grad}" for name in odd]
    found += differences(seen, expected, 0.0, "loaded:")
    wanted = rebuilt.logits(plain, spec)
    try:
        found += differences(rebuilt.logits(low, spec), wanted, 0.0, "loaded:")
    except RuntimeError as error:
        found.append(f"the forward raised RuntimeError: {error}")
    return verdict("loaded with little memory, it is what it is loaded without", found)


# ---- the other arguments ----


def renamed(path):
    """Return a key_mapping for the adapter at a path, whose file gets other names for its layers."""
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({name.replace(".layers.", ".blocks."): tensor for name, tensor in tensors.items()}, file)
    return {r"\.blocks\.": ".layers."}


#: Name of an argument -> its value for the adapter at a path.
ARGUMENTS: dict[str, Any] = {
    "is_trainable": lambda path: True,
    "autocast_adapter_dtype": lambda path: False,
    "torch_device": lambda path: "cpu",
    "ephemeral_gpu_offload": lambda path: True,
    "ignore_mismatched_sizes": lambda path: True,
    "key_mapping": renamed,
    "config": peft.PeftConfig.from_pretrained,
}


@pytest.mark.clause("CKPT-29")
@pytest.mark.parametrize("name", [pytest.param(name, id=f"from_pretrained/{name}") for name in ARGUMENTS])
def test_each_argument_of_from_pretrained_loads_the_adapter(name, upstream, tmp_path, judge):
    wanted = saved(FIRST, tmp_path)
    options = {name: ARGUMENTS[name](tmp_path)}
    loaded = peft.PeftModel.from_pretrained(models.build(FIRST.model), tmp_path, **options)
    judge(verdict("it computes what was saved", differences(rebuilt.logits(loaded, FIRST), wanted, 0.0, "loaded:")))


@pytest.mark.clause("CKPT-29")
@pytest.mark.parametrize(
    "name", [pytest.param(name, id=f"load_adapter/{name}") for name in ARGUMENTS if name != "config"]
)
def test_each_argument_of_load_adapter_loads_the_adapter(name, upstream, tmp_path, judge):
    wanted = saved(FIRST, tmp_path)
    options = {name: ARGUMENTS[name](tmp_path)}
    spec = FIRST.but(adapter={"seed": FIRST.adapter.seed + 1})
    model = inject(models.build(spec.model), spec.adapter)
    model.load_adapter(tmp_path, "second", **options)
    model.set_adapter("second")
    judge(verdict("it computes what was saved", differences(rebuilt.logits(model, FIRST), wanted, 0.0, "loaded:")))


@pytest.mark.clause("CKPT-29")
@pytest.mark.parametrize("low", [pytest.param(low, id=f"auto/low_cpu_mem_usage={low}") for low in (False, True)])
def test_the_auto_class_loads_base_and_adapter(low, upstream, tmp_path, judge):
    wanted = saved(FIRST, tmp_path / "adapter")
    models.build(FIRST.model).save_pretrained(tmp_path / "base")
    config = peft.PeftConfig.from_pretrained(tmp_path / "adapter")
    config.base_model_name_or_path = str(tmp_path / "base")
    config.save_pretrained(tmp_path / "adapter")
    with recorded_warnings([]):
        loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", low_cpu_mem_usage=low)
    found = differences(rebuilt.logits(loaded, FIRST), wanted, 0.0, "loaded:")
    refused = raises(
        "AutoPeftModel of an adapter with a task",
        ValueError,
        "Cannot use `AutoPeftModel` with a task type",
        lambda: peft.AutoPeftModel.from_pretrained(tmp_path / "adapter"),
    )
    judge(both(verdict("it computes what was saved", found), refused))
