"""The modules of a base model, without its weights: what the names in an adapter's config are compared with."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import UsageError
from harness.fixtures import architectures
from harness.fixtures.models import FAMILIES
from harness.spec import CONFIG_FAMILY, ModelSpec


@dataclass(frozen=True)
class Skeleton:
    """What a base model is made of.

    - modules: the name of each module.
    - linears: name -> (outputs, inputs) of each layer that LoRA adapts: linear layers and embeddings.
    - parameters: the name of each parameter.
    - layers: how many layers it has.
    - width: its hidden size.
    - vocabulary: how many tokens it has.
    - numbers: how many numbers its weights have.
    """

    modules: tuple[str, ...]
    linears: Mapping[str, tuple[int, int]]
    parameters: tuple[str, ...]
    layers: int
    width: int
    vocabulary: int
    numbers: int


def skeleton(spec: ModelSpec, where: str) -> Skeleton | None:
    """Return what a base model is made of; None for a factory, whose code is not run for it.

    Raises UsageError if transformers cannot make the model. where: what messages call its source.
    """
    try:
        if spec.family.startswith(CONFIG_FAMILY):
            return _described(architectures.skeleton(spec))
        return _described(_of_row(spec)) if spec.family in FAMILIES else None
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _of_row(spec: ModelSpec) -> Any:
    import torch
    import transformers

    row = FAMILIES[spec.family]
    with torch.device("meta"):
        config = getattr(transformers, row.config_class)(**{**row.config, **spec.config})
        return getattr(transformers, row.model_class)(config)


def _described(model: Any) -> Skeleton:
    linears = {}
    for name, module in model.named_modules():
        kind, weight = type(module).__name__, getattr(module, "weight", None)
        shape: list[int] = list(getattr(weight, "shape", ()))
        if len(shape) == 2 and ("Linear" in kind or "Embedding" in kind):
            linears[name] = (int(shape[0]), int(shape[1]))
        elif len(shape) == 2 and kind == "Conv1D":
            linears[name] = (int(shape[1]), int(shape[0]))
    parameters = dict(model.named_parameters())
    text = model.config.get_text_config()
    return Skeleton(
        modules=tuple(name for name, _ in model.named_modules() if name),
        linears=linears,
        parameters=tuple(parameters),
        layers=int(getattr(text, "num_hidden_layers", 0) or 0),
        width=int(getattr(text, "hidden_size", 0) or 0),
        vocabulary=int(getattr(text, "vocab_size", 0) or 0),
        numbers=sum(parameter.numel() for parameter in parameters.values()),
    )


@functools.cache
def of_family(family: str) -> Skeleton:
    """Return what a row of `FAMILIES` is made of."""
    found = skeleton(ModelSpec(family=family), family)
    assert found is not None
    return found
