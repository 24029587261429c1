"""A trained adapter merged into its base: once, twice, safely, and for good.

Each law acts on a model with a trained adapter. It gets the spec that the model was built from.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from harness.fixtures import models
from harness.laws import nf4, rebuilt
from harness.laws.equal import differences, largest
from harness.laws.rebuilt import tuner_layers
from harness.reference.lora import is_packed
from harness.spec import GET, RunSpec
from harness.tensors import names
from harness.tolerance import MERGED
from harness.trace import Tensors
from harness.verdict import NOT_COMPARABLE, Verdict, both, verdict


def merge(model: Any, spec: RunSpec, **options: Any) -> None:
    """Merge the active adapter by peft's verb. A model of add_adapter has none, so each of its layers is merged.

    - options: of merge_adapter, such as safe_merge.
    """
    if spec.adapter.route == GET:
        model.merge_adapter(**options)
    else:
        for layer in tuner_layers(model):
            layer.merge(**options)


def unmerge(model: Any, spec: RunSpec) -> None:
    if spec.adapter.route == GET:
        model.unmerge_adapter()
    else:
        for layer in tuner_layers(model):
            layer.unmerge()


def _unmergeable(spec: RunSpec) -> Verdict | None:
    reason = rebuilt.unmergeable(spec)
    if spec.model.quantization:
        reason = f"each merge packs the weights in {spec.model.quantization} again, which rounds"
    return Verdict(NOT_COMPARABLE, "merged, it computes what it did", (reason,)) if reason else None


def merges(model: Any, spec: RunSpec) -> Verdict:
    """Check that merging adds the adapter to the base's weights, and that unmerging takes it out, but for rounding.

    A base in float32: the logits must stay the same.

    A base in half precision: the weights must be those that the same model has when it is merged in float32
    (`_merges_weights`). A packed base: the same, with what packing rounds (`_merges_packed`).
    """
    if spec.model.quantization:
        return _merges_packed(model, spec)
    if reason := _unmergeable(spec):
        return reason
    if spec.model.dtype == "float32":
        return both(_merges(model, spec), _merges_weights(model, spec, model))
    wide = copy.deepcopy(model).float()
    return both(_merges(wide, spec), _merges_weights(model, spec, wide))


def _merges(model: Any, spec: RunSpec) -> Verdict:
    """Check that a model in float32 computes the same when it is merged, and then when it is unmerged."""
    before = rebuilt.logits(model, spec)
    merge(model, spec)
    findings = differences(rebuilt.logits(model, spec), before, MERGED.loss, "merged:")
    unmerge(model, spec)
    findings += differences(rebuilt.logits(model, spec), before, MERGED.loss, "unmerged:")
    return verdict("merged and unmerged, the model computes what it did", findings)


def _merges_weights(model: Any, spec: RunSpec, wide: Any) -> Verdict:
    """Check the weights of a merged and of an unmerged model.

    - wide: the same model in float32.

    The bound follows from the dtype. A number is rounded by at most u = eps / 2 of itself. peft rounds the adapter's part D
    and the sum W + D, and unmerging rounds D and the difference once more. With m, the largest element of W and of W + D, D
    is at most 2m. So a merged weight is off by u * 2m + u * m = 3um, and an unmerged one by twice that, 6um. Whatever makes
    D of smaller matrices in half precision rounds each of them once: at most two factors, which adds 2u * 2m.
    """
    layers, widely = tuner_layers(model), tuner_layers(wide)
    base = _weights(layers)
    merge(model, spec)
    if wide is not model:
        merge(wide, spec)
    sums, expected = _weights(layers), _weights(widely)
    if wide is not model:
        unmerge(wide, spec)
    unmerge(model, spec)
    again, findings = _weights(layers), []
    for name, weight in base.items():
        u = torch.finfo(weight.dtype).eps / 2
        size = max(largest(weight), largest(expected[name]))
        findings += _apart(f"merged: {name}", sums[name], expected[name], 7 * u * size)
        findings += _apart(f"unmerged: {name}", again[name], weight, 14 * u * size)
    if all(torch.equal(sums[name], weight) for name, weight in base.items()) and spec.model.dtype == "float32":
        findings.append("merging left every weight of the base as it was")
    return verdict("merging adds the adapter to the weights, unmerging takes it out, but for rounding", findings)


def _merges_packed(model: Any, spec: RunSpec) -> Verdict:
    """Check the weights that a packed model unpacks to when it is merged.

    They must be those of a twin, whose base is in float32 and has the unpacked weights, but for what packing rounds. NF4 has
    16 values between -1 and 1 times the largest of a block. The widest gap is between 0.723 and 1, so a weight is off by
    0.139 of the largest at most, and by 0.16 with the rounding of the scales and the dtype. int8 has 127 steps from 0 to the
    largest of a row: half a step is 0.004, and 0.02 with bfloat16.
    """
    from harness.subjects.hf_trainer import inject

    twin = inject(models.build(spec.but(model={"quantization": None, "dtype": "float32"}).model), spec.adapter)
    values, layers, twins = dict(model.named_parameters()), tuner_layers(model), tuner_layers(twin)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if names.is_adapter(name):
                parameter.copy_(values[name])
        for layer, other in zip(layers, twins, strict=True):
            other.get_base_layer().weight.copy_(_unpacked(layer, other))
    merge(model, spec)
    merge(twin, spec)
    share = 0.16 if spec.model.four_bit else 0.02
    findings: list[str] = []
    for number, (layer, other) in enumerate(zip(layers, twins, strict=True)):
        expected = other.get_base_layer().weight.detach()
        findings += _apart(f"merged: layer {number}", _unpacked(layer, other), expected, share * largest(expected))
    return verdict("merging adds the adapter to what packed weights stand for, but for what packing rounds", findings)


def _unpacked(layer: Any, twin: Any) -> torch.Tensor:
    """Return the weight that a packed layer stands for, in float32, on the CPU. twin: the same layer, not packed."""
    base = layer.get_base_layer()
    if is_packed(base):
        return nf4.unpacked(base, twin.get_base_layer().weight.shape).float()
    state = base.state
    data = base.weight.data if getattr(state, "CB", None) is None else state.CB
    scales = base.weight.SCB if getattr(base.weight, "SCB", None) is not None else state.SCB
    found: torch.Tensor = data.float() * scales.float()[:, None] / 127
    return found.cpu()


def _apart(what: str, seen: torch.Tensor, expected: torch.Tensor, bound: float) -> list[str]:
    gap = float((seen.double() - expected.double()).abs().max()) if seen.numel() else 0.0
    return [] if gap <= bound else [f"{what} differs by {gap:.3g} at most, {bound:.3g} is rounding"]


def _weights(layers: list[Any]) -> Tensors:
    return {
        f"layer {index} {name}": parameter.detach().clone()
        for index, layer in enumerate(layers)
        for name, parameter in layer.get_base_layer().named_parameters()
        if parameter.is_floating_point()
    }


def merges_again(model: Any, spec: RunSpec) -> Verdict:
    """Check that merging twice is merging once, that safe_merge gives the same bits, and that it refuses NaN.

    1. The model is merged, and merged again: no bit of a weight may change the second time.
    2. A copy is merged with safe_merge: the same bits; in half precision one rounding more or less.
    3. Another copy has NaN in its adapter: safe_merge must raise ValueError, and leave the base's weights as they were.
    """
    if reason := _unmergeable(spec):
        return reason
    safe, broken = copy.deepcopy(model), copy.deepcopy(model)
    merge(model, spec)
    once = _weights(tuner_layers(model))
    merge(model, spec)
    twice = _weights(tuner_layers(model))
    merge(safe, spec, safe_merge=True)
    findings = differences(twice, once, 0.0, "merged twice:")
    for name, weight in _weights(tuner_layers(safe)).items():
        # In half precision it may add in float32 and round once: by u each way.
        bound = 0.0 if weight.dtype == torch.float32 else torch.finfo(weight.dtype).eps * largest(once[name])
        findings += _apart(f"merged with safe_merge: {name}", weight, once[name], bound)
    with torch.no_grad():
        for name, parameter in broken.named_parameters():
            if names.is_adapter(name) and parameter.is_floating_point():
                parameter.fill_(float("nan"))
    before = _weights(tuner_layers(broken))
    try:
        merge(broken, spec, safe_merge=True)
        findings.append("safe_merge merged an adapter of NaN without an error")
    except ValueError as error:
        if "nan" not in str(error).lower():
            findings.append(f"safe_merge of an adapter of NaN raised ValueError: {error}")
    findings += differences(_weights(tuner_layers(broken)), before, 0.0, "after safe_merge refused:")
    return verdict("merging twice is merging once, and safe_merge merges the same or refuses NaN", findings)


def unloads_merged(model: Any, spec: RunSpec, directory: Path) -> Verdict:
    """Check merge_and_unload: a model of the base's class, without adapters, that computes what the merged one did.

    Saved and loaded again, it must have the same bits.
    """
    if reason := _unmergeable(spec):
        return reason
    before = rebuilt.logits(model, spec)
    merge(model, spec)
    merged = rebuilt.logits(model, spec)
    unmerge(model, spec)
    plain = model.merge_and_unload()
    expected = type(models.build(spec.model))
    findings = [] if type(plain).__name__ == expected.__name__ else [f"it is a {type(plain)}, expected {expected}"]
    findings += [f"{name} is left" for name in plain.state_dict() if names.is_adapter(name)]
    seen = rebuilt.logits(plain, spec)
    bound = MERGED.loss if spec.model.dtype == "float32" else 16 * torch.finfo(getattr(torch, spec.model.dtype)).eps
    findings += differences(seen, merged, bound, "unloaded, against merged:")
    if spec.model.dtype == "float32":
        findings += differences(seen, before, bound, "unloaded, against unmerged:")
    plain.save_pretrained(directory)
    if ":" not in spec.model.family:
        loaded = type(plain).from_pretrained(directory, dtype=getattr(torch, spec.model.dtype))
        findings += differences(loaded.state_dict(), plain.state_dict(), 0.0, "saved and loaded:")
    return verdict("merged and unloaded, it is a plain model that computes what it did, and can be saved", findings)
