"""A trained adapter that is saved, and loaded again in each way that peft and transformers have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.fixtures import models
from harness.laws import base_weights, rebuilt
from harness.laws.equal import differences
from harness.spec import GET, RunSpec
from harness.tensors import names
from harness.trace import Tensors
from harness.verdict import NOT_COMPARABLE, Verdict, verdict


def _fresh(spec: RunSpec) -> Any:
    """Return a base with a fresh adapter of other values, by the spec's config."""
    from harness.subjects.hf_trainer import inject

    return inject(models.build(spec.model), dataclasses.replace(spec.adapter, route=GET, seed=spec.adapter.seed + 1))


def _from_pretrained(path: Path, spec: RunSpec, **options: Any) -> tuple[Any, str]:
    from peft import PeftModel

    name = options.get("adapter_name", "default")
    return PeftModel.from_pretrained(models.build(spec.model), str(path), **options), name


def _beside(path: Path, spec: RunSpec) -> tuple[Any, str]:
    model = _fresh(spec)
    model.load_adapter(str(path), "second")
    model.set_adapter("second")
    return model, "second"


def _by_tensors(path: Path, spec: RunSpec) -> tuple[Any, str]:
    from peft import set_peft_model_state_dict
    from peft.utils import load_peft_weights

    model = _fresh(spec)
    set_peft_model_state_dict(model, load_peft_weights(str(path), device="cpu"))
    return model, "default"


def _swapped(path: Path, spec: RunSpec) -> tuple[Any, str]:
    from peft.utils.hotswap import hotswap_adapter

    model = _fresh(spec)
    hotswap_adapter(model, str(path), adapter_name="default")
    return model, "default"


def _by_the_model(path: Path, spec: RunSpec) -> tuple[Any, str]:
    base = models.build(spec.model)
    base.load_adapter(str(path))
    return base, "default"


#: Ways to load an adapter -> what loads it from a directory: the model, and the adapter's name in it.
WAYS: dict[str, Callable[[Path, RunSpec], tuple[Any, str]]] = {
    "from-pretrained": _from_pretrained,
    "another-name": lambda path, spec: _from_pretrained(path, spec, adapter_name="other"),
    "low-cpu-mem-usage": lambda path, spec: _from_pretrained(path, spec, low_cpu_mem_usage=True),
    "beside": _beside,
    "by-tensors": _by_tensors,
    "hotswap": _swapped,
    "by-the-model": _by_the_model,
}


def loads(model: Any, spec: RunSpec, trained: set[str], way: str, directory: Path) -> Verdict:
    """Check that a trained adapter, saved and loaded in one of `WAYS`, has the values that it had, and computes the same.

    - trained: canonical names of the tensors that were trained.

    The dtype may be another: PeftModel loads half precision as float32, and a model's own load_adapter casts to the dtype of
    the model. So the values must be the saved ones in the dtype that they were loaded in, without any other rounding. If the
    dtype is the same, the logits must be the same, bit for bit.

    AdaLoRA's logits are not compared: loaded for inference it takes no labels (CKPT-21).
    """
    from harness.subjects.hf_trainer import recorded_warnings

    if reason := base_weights.redrawn_by_loading(spec.adapter):
        return Verdict(NOT_COMPARABLE, "a loaded adapter is the saved one", (reason,))
    expected = _trained(model, spec.adapter.name, trained)
    with recorded_warnings([]):
        model.save_pretrained(directory)
        loaded, name = WAYS[way](directory, spec)
    seen = _trained(loaded, name, trained)
    cast = {key: tensor.to(seen[key].dtype) if key in seen else tensor for key, tensor in expected.items()}
    findings = differences(seen, cast, 0.0, "loaded:")
    if spec.adapter.peft_type == "ADALORA":
        return verdict("a loaded adapter is the saved one", findings)
    # A model with tensors on two devices computes nothing.
    if not findings and {key: tensor.dtype for key, tensor in seen.items()} == {
        key: tensor.dtype for key, tensor in expected.items()
    }:
        findings += differences(rebuilt.logits(loaded, spec), rebuilt.logits(model, spec), 0.0, "loaded:")
    return verdict("a loaded adapter is the saved one", findings)


def _trained(model: Any, adapter: str, trained: set[str]) -> Tensors:
    named = {names.canonical(name, adapter): parameter for name, parameter in model.named_parameters()}
    return {name: named[name].detach() for name in trained if name in named}
