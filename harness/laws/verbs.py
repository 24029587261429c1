"""What is done to a trained model beside training: unloaded, deleted, disabled, converted, cast, and which modes it leaves.

Each law acts on a model with a trained adapter. It gets the spec that the model was built from. `refusing` tells what
upstream refuses in words from what goes wrong. `harness.laws.merging` and `harness.laws.load_ways` have the other verbs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.fixtures import models
from harness.laws import base_weights, merging, rebuilt
from harness.laws.equal import differences, largest
from harness.raised import refuses
from harness.spec import GET, RunSpec
from harness.tensors import names
from harness.tolerance import MERGED
from harness.verdict import NOT_COMPARABLE, Refused, Verdict, verdict


def refusing(what: str, act: Callable[[], Verdict]) -> Verdict:
    """Return the verdict of `act`. If upstream refuses it in words, the verdict is NOT_COMPARABLE, with the words.

    Any other exception fails, such as one about a shape that does not fit (`harness.raised.refuses`).

    - what: the name of the act, such as "merge".
    """
    try:
        return act()
    except Exception as error:
        said = str(error).strip().splitlines()[:1]
        words = ": ".join([type(error).__name__, *said])
        if refuses(error):
            return Verdict(NOT_COMPARABLE, f"{what} is done", (Refused(f"upstream refuses it: {words}"),))
        return verdict(f"{what} is done, or refused in words", [f"{what} raised {words}"])


# ---- taken out of the base ----


def _is_base(model: Any, spec: RunSpec, when: str) -> list[str]:
    """Return how a model without adapters differs from the base of the spec, in its tensors and its logits."""
    base = models.build(spec.model)
    seen = {names.canonical(name): tensor for name, tensor in model.state_dict().items()}
    expected = dict(base.state_dict())
    left = [f"{when} {name} is left" for name in seen if names.is_adapter(name)]
    held = {name: tensor for name, tensor in seen.items() if not names.is_adapter(name)}
    findings = left + differences(held, expected, 0.0, when)
    return findings + differences(rebuilt.logits(model, spec), rebuilt.logits(base, spec), 0.0, when)


def _changed(spec: RunSpec) -> Verdict | None:
    if reason := base_weights.changed_by_injection(spec.adapter):
        return Verdict(NOT_COMPARABLE, "without its adapter, the model is the base", (reason,))
    return None


def unloads(model: Any, spec: RunSpec) -> Verdict:
    """Check that unload() gives back the base: its class, its tensors and its logits, bit for bit."""
    if reason := _changed(spec):
        return reason
    return verdict("unload() gives back the base, bit for bit", _is_base(model.unload(), spec, "unloaded:"))


def deletes(model: Any, spec: RunSpec) -> Verdict:
    """Check that without its only adapter a model is the base, bit for bit."""
    if reason := _changed(spec):
        return reason
    model.delete_adapter(spec.adapter.name)
    # A PeftModel looks up the config of its active adapter. The model inside it does not.
    inside = model.base_model.model if spec.adapter.route == GET else model
    return verdict("without its adapter the model is the base, bit for bit", _is_base(inside, spec, "deleted:"))


def disables(model: Any, spec: RunSpec) -> Verdict:
    """Check that a disabled adapter leaves the base, and that it computes as before when it is enabled again."""
    return _changed(spec) or rebuilt.off_and_on(model, spec)


# ---- converted to a LoRA ----


def converts(model: Any, spec: RunSpec, directory: Path) -> Verdict:
    """Check that an adapter converted to a LoRA of whatever rank it takes computes on a new base what it computed.

    save_as_lora with rank=1.0 leaves out singular values whose squares are lost when all squares are added in float32: of 64
    values, 64 eps / 2 of the sum at most. So the adapter's part may be off by the root of that, a share of 0.002.
    """
    from peft import PeftModel, save_as_lora

    if spec.model.dtype != "float32" or spec.model.quantization:
        words = f"a conversion for a base in {spec.model.quantization or spec.model.dtype} rounds"
        return Verdict(NOT_COMPARABLE, "as a LoRA it computes the same", (words,))
    save_as_lora(str(directory), model, rank=1.0)
    loaded = PeftModel.from_pretrained(models.build(spec.model), str(directory))
    before, base = rebuilt.logits(model, spec), rebuilt.logits(models.build(spec.model), spec)
    bound = max(MERGED.loss, 0.002 * largest(before["logits"] - base["logits"]))
    findings = differences(rebuilt.logits(loaded, spec), before, bound, "as a LoRA:")
    return verdict("as a LoRA it computes the same", findings)


# ---- cast ----


def casts(model: Any, spec: RunSpec) -> Verdict:
    """Check that casting a model casts its adapter, and that a model that was cast up and back has its bits again.

    In float64 the logits must be those of float32 but for rounding: the bound is that of merging in float32. Then the model
    is cast back.
    """
    expected = "cast to float64 the model computes the same, and cast back it has its bits again"
    if spec.model.quantization:
        return Verdict(NOT_COMPARABLE, expected, (f"a base in {spec.model.quantization} is not cast",))
    try:
        rebuilt.logits(models.build(spec.model).double(), spec)
    except RuntimeError as error:
        return Verdict(NOT_COMPARABLE, expected, (f"the base does not compute in float64: {error}",))
    before, dtypes = rebuilt.logits(model, spec), _dtypes(model)
    model.double()
    odd = [f"{name} is {dtype} after double()" for name, dtype in _dtypes(model).items() if dtype != torch.float64]
    wide = rebuilt.logits(model, spec)["logits"]
    findings = odd[:3]
    if wide.dtype != torch.float64:
        findings.append(f"the logits of a model in float64 are {wide.dtype}")
    if spec.model.dtype == "float32":
        findings += differences({"logits": wide.float()}, before, MERGED.loss, "in float64:")
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, dtype in dtypes.items():
        named[name].data = named[name].data.to(dtype)
    findings += differences(rebuilt.logits(model, spec), before, 0.0, "cast back:")
    return verdict(expected, findings)


def _dtypes(model: Any) -> dict[str, torch.dtype]:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.dtype for name, tensor in named.items() if tensor.is_floating_point()}


# ---- modes ----


def keeps_modes(model: Any, spec: RunSpec, directory: Path) -> Verdict:
    """Check that `_QUIET` verbs leave the mode of each module, and which parameters require gradients, as they were.

    They are done in training mode and in evaluation mode; saving in training mode alone, as the Trainer does it. A verb that
    upstream refuses in words is left out, and so is merging packed weights, which is judged by itself (`merging.merges`).
    """
    findings: list[str] = []
    for training in (True, False):
        model.train(training)
        for verb, act in _QUIET.items():
            if (act is _merge_and_back and spec.model.quantization) or (act is _save and not training):
                continue
            before = modes(model)
            try:
                act(model, spec, directory)
            except Exception as error:
                if not refuses(error):
                    raise
            findings += changed_modes(f"{verb} in {'training' if training else 'evaluation'} mode", model, before)
    return verdict("modes and requires_grad are left as they were", findings)


def stays_frozen(model: Any, spec: RunSpec, directory: Path) -> Verdict:
    """Check that a frozen adapter, such as one that was loaded for inference, is frozen after each of the `_QUIET` verbs."""
    findings: list[str] = []
    for verb, act in _QUIET.items():
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        before = modes(model)
        act(model, spec, directory)
        findings += changed_modes(verb, model, before)
    return verdict("a frozen adapter stays frozen", findings)


def changed_modes(when: str, model: Any, before: dict[str, bool]) -> list[str]:
    """Return a sentence if a module's mode or a parameter's requires_grad is not what it was.

    - when: how the sentence begins.
    - before: what `modes` returned then.
    """
    after = modes(model)
    changed = [name for name in before if after.get(name) != before[name]]
    if not changed:
        return []
    name = changed[0]
    return [f"{when}: {name} is {after.get(name)}, was {before[name]}; {len(changed)} of {len(before)} changed"]


def modes(model: Any) -> dict[str, bool]:
    """Return whether each module is in training mode, and whether each parameter requires gradients."""
    training = {f"training of {name or 'the model'}": module.training for name, module in model.named_modules()}
    return training | {
        f"requires_grad of {name}": parameter.requires_grad for name, parameter in model.named_parameters()
    }


def _off_and_on(model: Any, spec: RunSpec, directory: Path) -> None:
    if spec.adapter.route == GET:
        with model.disable_adapter():
            pass
    else:
        model.disable_adapters()
        model.enable_adapters()


def _save(model: Any, spec: RunSpec, directory: Path) -> None:
    model.save_pretrained(directory / "quiet")


def _merge_and_back(model: Any, spec: RunSpec, directory: Path) -> None:
    merging.merge(model, spec)
    merging.unmerge(model, spec)


#: Verbs that must leave modes and requires_grad as they were.
_QUIET = {"disabling and enabling": _off_and_on, "saving": _save, "merging and unmerging": _merge_and_back}
