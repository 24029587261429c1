"""SERVE: adapters that another process loads."""

from __future__ import annotations

import json
from pathlib import Path

from harness.mutants.catalogue import Mutant
from harness.mutants.patch import LINEAR, PEFT, TUNER, replace


def alpha_left_out(original, config, directory, **options):
    original(config, directory, **options)
    file = Path(directory) / "adapter_config.json"
    fields = json.loads(file.read_text())
    fields.pop("lora_alpha", None)
    file.write_text(json.dumps(fields))


def read_in_half(original, *args, **options):
    return {name: tensor.bfloat16().to(tensor.dtype) for name, tensor in original(*args, **options).items()}


def unloaded_alone(original, tuner, *args, **options):
    return tuner.unload()


def head_tied(original, model, *args, **options):
    model.get_output_embeddings().weight.data.copy_(model.get_input_embeddings().weight.data)
    return original(model, *args, **options)


def dora_left_out(original, config, directory, **options):
    original(config, directory, **options)
    file = Path(directory) / "adapter_config.json"
    file.write_text(file.read_text().replace('"use_dora": true', '"use_dora": false'))


def in_half(original, layer, adapter):
    return original(layer, adapter).bfloat16().float()


def written_again(original, base, directory, *args, **options):
    file = Path(directory) / "adapter_config.json"
    file.write_text(file.read_text() + " ")
    return original(base, directory, *args, **options)


def scaled_by_the_rank_alone(original, *args, **options):
    model = original(*args, **options)
    for module in model.modules():
        if hasattr(module, "scaling"):
            module.scaling = {name: value / 2 for name, value in module.scaling.items()}
    return model


MUTANTS = (
    Mutant(
        "alpha-not-in-the-config",
        "adapter_config.json does not have lora_alpha, so that whoever loads it takes the default.",
        replace("peft.config:PeftConfigMixin", "save_pretrained", alpha_left_out),
        cells=("SERVE-03/llama/lora", "SERVE-01/llama/lora-from_pretrained", "SERVE-01/llama/lora-state_dict"),
    ),
    Mutant(
        "adapter-read-in-half-precision",
        "PeftModel.from_pretrained rounds the adapter's tensors to bfloat16 as it reads them.",
        replace("peft.peft_model", "load_peft_weights", read_in_half),
        cells=("SERVE-01/llama/lora-from_pretrained", "SERVE-01/llama/lora/named-auto"),
    ),
    Mutant(
        "unloaded-without-merging",
        "merge_and_unload returns the base without the adapter.",
        replace(TUNER, "merge_and_unload", unloaded_alone),
        cells=("SERVE-02/llama/lora", "SERVE-02/gpt2/lora"),
    ),
    Mutant(
        "loading-ties-the-output-layer",
        "PeftModel.from_pretrained copies the embedding into the base's output layer.",
        replace(PEFT, "from_pretrained", head_tied),
        cells=("SERVE-04/llama/lora", "SERVE-01/llama/lora-from_pretrained"),
    ),
    Mutant(
        "dora-not-in-the-config",
        "adapter_config.json of a DoRA says that it is none.",
        replace("peft.config:PeftConfigMixin", "save_pretrained", dora_left_out),
        cells=("SERVE-03/llama/dora", "SERVE-01/llama/dora-from_pretrained"),
    ),
    Mutant(
        "merged-in-half-precision",
        "Merging rounds what the adapter adds to bfloat16.",
        replace(LINEAR, "get_delta_weight", in_half),
        cells=("SERVE-02/llama/lora", "SERVE-02/opt/lora"),
    ),
    Mutant(
        "loading-writes-the-config",
        "PeftModel.from_pretrained writes adapter_config.json anew.",
        replace(PEFT, "from_pretrained", written_again),
        cells=("SERVE-04/llama/lora",),
    ),
    Mutant(
        "loaded-at-half-strength",
        "PeftModel.from_pretrained halves the scaling of what it loads.",
        replace(PEFT, "from_pretrained", scaled_by_the_rank_alone),
        cells=("SERVE-01/gpt2/lora-from_pretrained", "SERVE-01/t5/lora-from_pretrained"),
    ),
)
