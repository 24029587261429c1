"""What the installed stack lacks: each function returns why something cannot run on it, or None if it can.

Beside `compat`, this is the only module that looks at releases. Names of arguments and of adapters' fields, which a release
may lack as well, are in `compat`, with their tables.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from harness.environment import import_error, left_out, satisfies, unimportable, version


def experts(parameters: Iterable[str]) -> str | None:
    """Return why Qwen3-MoE cannot be trained with these target_parameters; None if it can.

    transformers has the model since 4.51. Since 5.0 the experts of a layer are one parameter; before, each was a module.
    """
    fused = any("experts" in name for name in parameters)
    if satisfies("transformers>=5.0") or (satisfies("transformers>=4.51") and not fused):
        return None
    lacks = "no parameter of all experts of a layer" if fused else "no Qwen3MoeForCausalLM"
    return f"transformers {version('transformers')} has {lacks}"


#: Architectures that the suites train (`harness.runs.kinds`), and that older releases of transformers do not have.
_NEWER = ("deepseek_v3", "gemma3_text", "gpt_oss", "mamba", "mixtral", "qwen3_moe", "qwen3_next")


def architecture(kind: str, task: str, parameters: Iterable[str]) -> str | None:
    """Return why an architecture of the suites cannot be trained here; None if it can, or is a name of the user's.

    - kind: its model_type.
    - task: of its rows (`harness.fixtures.models.TASK_TYPES`).
    - parameters: the adapter's target_parameters. Since transformers 5.0 the experts of Mixtral's layers are one parameter.
    """
    import transformers

    if kind in _NEWER and kind not in transformers.CONFIG_MAPPING:
        return f"transformers {version('transformers')} has no model_type {kind!r}"
    if task == "image-text" and not hasattr(transformers, "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING"):
        return f"transformers {version('transformers')} has no AutoModelForImageTextToText"
    fused = kind in ("mixtral", "qwen3_moe") and any("experts" in name for name in parameters)
    return experts(parameters) if fused else None


def start(value: Any) -> str | None:
    """Return why the installed peft has no such value of init_lora_weights; None if it has it, or a release never had it."""
    from peft.tuners.lora import layer

    newer = ("eva", "corda", "orthogonal", "lora_ga", "mica")
    there = value not in newer or f'"{value}"' in inspect.getsource(layer)
    return None if there else f"peft {version('peft')} has no init_lora_weights {value!r}"


def sharded_loading() -> str | None:
    """Why the Trainer takes no base model that from_pretrained has sharded (DistributedConfig): since transformers 5.19."""
    from transformers import PreTrainedModel

    takes = hasattr(PreTrainedModel, "is_distributed_loading_by_transformers")
    return None if takes else "the Trainer takes no base that was sharded as it was loaded before transformers 5.19"


def tensor_parallelism() -> str | None:
    """Why peft gives no adapter to layers that transformers splits in DTensors (DistributedConfig): since peft 0.21."""
    from peft.tuners.lora import model

    takes = hasattr(model, "add_lora_tp_hooks_dtensor")
    return (
        None if takes else f"peft {version('peft')} has no adapters beside layers that transformers splits over ranks"
    )


def fsdp2() -> str | None:
    """Why accelerate has no FSDP version 2 (torch's fully_shard): since accelerate 1.6."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    fields = {field.name for field in dataclasses.fields(FullyShardedDataParallelPlugin)}
    return None if "fsdp_version" in fields else "accelerate before 1.6 has FSDP version 1 only"


def quantization(storage: str | None = None) -> str | None:
    """Why bitsandbytes cannot quantize a base model here.

    - storage: the dtype that packed weights are stored in; None for bytes.

    Without a GPU it takes transformers 4.53, and bitsandbytes 0.47 for weights that are stored as floats.
    """
    import torch

    if version("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    if reason := unimportable("bitsandbytes"):
        return reason
    if torch.cuda.is_available():
        return None
    if not satisfies("transformers>=4.53"):
        return "transformers before 4.53 loads no bitsandbytes model without a GPU"
    packed_into_floats = storage not in (None, "uint8") and not satisfies("bitsandbytes>=0.47")
    return "without a GPU, bitsandbytes before 0.47 unpacks bytes only" if packed_into_floats else None


def packed_masks() -> str | None:
    """Why rows of one sequence attend to each other: position_ids alone keep them apart since transformers 4.53."""
    found = _has("transformers.masking_utils")
    return None if found else "before transformers 4.53, rows that are packed into one sequence attend to each other"


def scaled_product() -> str | None:
    """Why torch has no product of matrices in 8 bits with scales (torch._scaled_mm): since torch 2.4, and not public."""
    import torch

    return None if hasattr(torch, "_scaled_mm") else f"torch {torch.__version__} has no _scaled_mm"


def attention(name: str | None, device: str) -> str | None:
    """Why an attn_implementation cannot be used on a device: its package is not installed, or torch does not train it."""
    packages = {
        "flash_attention_2": ("flash_attn", "flash-attn"),
        "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
    }
    if name in packages and (lack := _lack(*packages[name])):
        return f"attn_implementation {name!r} needs {lack}"
    if name == "flex_attention" and device == "cpu":
        return "attn_implementation 'flex_attention' has no backward pass on a CPU"
    return None


#: How the names of optimizers begin -> the module that they need, and the package that has it. From
#: transformers/trainer_optimizer.py (the Trainer.get_optimizer_cls_and_kwargs of older releases).
_OPTIMIZER_PACKAGES: dict[tuple[str, ...], tuple[str, str]] = {
    ("galore_",): ("galore_torch", "galore-torch"),
    ("lomo", "adalomo"): ("lomo_optim", "lomo-optim"),
    ("grokadamw",): ("grokadamw", "grokadamw"),
    ("schedule_free_",): ("schedulefree", "schedulefree"),
    ("apollo_",): ("apollo_torch", "apollo-torch"),
    ("stable_adamw",): ("optimi", "torch-optimi"),
    ("adamw_torch_4bit", "adamw_torch_8bit"): ("torchao", "torchao"),
    ("adamw_anyprecision",): ("torchdistx", "torchdistx"),
    ("adamw_apex_fused",): ("apex", "apex"),
    ("adamw_torch_xla",): ("torch_xla", "torch-xla"),
    ("adamw_torch_npu_fused",): ("torch_npu", "torch-npu"),
    ("adamw_bnb", "adamw_8bit", "ademamix", "lion_", "paged_", "rmsprop_bnb"): ("bitsandbytes", "bitsandbytes"),
}


def _has(module: str) -> bool:
    return module not in left_out() and importlib.util.find_spec(module) is not None


def _lack(module: str, package: str) -> str | None:
    """Name an optional package and say why it cannot be used: it is not installed, or its import fails. None if it can."""
    if not _has(module):
        return f"{package}, which is not installed"
    error = import_error(module)
    return f"{package}, which is installed, but cannot be imported ({error})" if error else None


def method(peft_type: str, config: Mapping[str, Any]) -> str | None:
    """Why an adapter cannot be made here: it needs a package, a GPU or other adapters; None if it can."""
    if peft_type == "ADAMSS" and (lack := _lack("sklearn", "scikit-learn")):
        return f"ADAMSS clusters by {lack}"
    if config.get("arrow_config") is not None or peft_type == "XLORA":
        return "it mixes adapters that were trained before, and a spec makes none (create_arrow_model, XLoraConfig.adapters)"
    if config.get("init_lora_weights") == "loftq":
        import torch

        if not torch.cuda.is_available():
            return "init_lora_weights 'loftq' quantizes the weights on a GPU, and this machine has none"
    return None


def package(arguments: Mapping[str, Any]) -> str | None:
    """Why TrainingArguments need a package that is not installed; None if they need none."""
    optimizer = str(arguments.get("optim") or "")
    needed = [
        (f"optimizer {optimizer!r}", *package)
        for names, package in _OPTIMIZER_PACKAGES.items()
        if optimizer.startswith(names)
    ]
    if arguments.get("use_liger_kernel"):
        needed.append(("use_liger_kernel", "liger_kernel", "liger-kernel"))
    if "apex" in (arguments.get("half_precision_backend"), arguments.get("fp16_backend")):
        needed.append(("half_precision_backend 'apex'", "apex", "apex"))
    if arguments.get("use_ipex"):
        needed.append(("use_ipex", "intel_extension_for_pytorch", "intel-extension-for-pytorch"))
    report = arguments.get("report_to")
    if "tensorboard" in (report if isinstance(report, (list, tuple)) else [report]) and not _has("tensorboardX"):
        needed.append(("report_to 'tensorboard'", "tensorboard", "tensorboard"))
    for what, module, package in needed:
        if lack := _lack(module, package):
            return f"{what} needs {lack}"
    return None


def load_option() -> str | None:
    """Why load_adapter of a transformers model takes no is_trainable: since transformers 4.47."""
    from transformers import PreTrainedModel

    takes = inspect.signature(PreTrainedModel.load_adapter).parameters
    return None if "is_trainable" in takes else "load_adapter takes no is_trainable before transformers 4.47"


def attention_interface() -> str | None:
    """Why transformers lets nobody register an attention function: since transformers 4.51."""
    import transformers

    has = hasattr(transformers, "AttentionInterface")
    return None if has else f"transformers {version('transformers')} has no AttentionInterface"


def loss_switch(trainer_class: type) -> str | None:
    """Why a Trainer cannot say that its loss is divided already: since transformers 5.19."""
    has = hasattr(trainer_class, "loss_is_scaled_for_ga")
    return None if has else f"transformers {version('transformers')} has no Trainer.loss_is_scaled_for_ga"


def card_tags() -> str | None:
    """Why model cards have no tags of peft's: since peft 0.16."""
    return None if satisfies("peft>=0.16") else "peft gives model cards no tags before release 0.16"


def bf16_refusal() -> str | None:
    """Why bf16=True without a GPU and without use_cpu is no error: before transformers 4.52 the CPU was taken."""
    return "transformers before 4.52 takes the CPU for bf16 unasked" if satisfies("transformers<4.52") else None
