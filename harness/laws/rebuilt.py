"""A trained adapter in a rebuilt model: disabled, merged, unmerged, loaded from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from harness.fixtures import data, models
from harness.laws import base_weights
from harness.laws.checkpoint import ADAPTER_FILE, adapter_files
from harness.laws.comparisons import HALF
from harness.laws.completion import incomplete
from harness.laws.equal import differences, largest, same_adapter
from harness.laws.recompute import logits_of
from harness.raised import refuses
from harness.spec import GET, RunSpec
from harness.tensors import names
from harness.tolerance import EXACT, MERGED, REBUILT
from harness.trace import Tensors, Trace
from harness.verdict import NOT_COMPARABLE, Verdict, both, verdict

#: TrainingArguments -> the dtype of their autocast.
_AUTOCASTS = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: An option of get_peft_model that from_pretrained must be given, too, so that the adapter has the dtype that it was
#: trained in (peft/peft_model.py). By default half precision becomes float32.
_KEPT_OPTION = "autocast_adapter_dtype"


def trained_model(trace: Trace, spec: RunSpec | None = None) -> Any:
    """Rebuild the model as it was when training ended: inject the adapter, and copy the trained values into it by name.

    - spec: names another base, such as one in another dtype, or another route; None for the spec that was trained.
    """
    from harness.subjects.hf_trainer import inject

    spec = spec or trace.spec
    model = inject(models.build(spec.model), spec.adapter)
    named = adapter_of(model, trace)
    with torch.no_grad():
        for name, value in trace.adapter.items():
            named[name].copy_(value)
    return model


def adapter_of(model: Any, trace: Trace, adapter: str | None = None) -> Tensors:
    """Return canonical name -> parameter of `model`, for the tensors that the run trained.

    - adapter: the adapter's name in `model`; None for the spec's.
    """
    named = {names.canonical(n, adapter or trace.spec.adapter.name): p for n, p in model.named_parameters()}
    return {name: named[name] for name in trace.trainable if name in named}


def tuner_layers(model: Any) -> list[Any]:
    """Return the layers of a model that hold an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def logits(model: Any, spec: RunSpec) -> Tensors:
    """Return {"logits": tensor} for the spec's first two rows, in eval mode, moved to the CPU.

    - model: on any device; a packed model may be on a GPU.

    A packed base, or one in half precision, is computed under the autocast that the run trains under: beside a float32
    adapter, some methods compute under no other. Any other base is computed in float32, where small differences show.
    """
    rows, device = data.rows(spec.data)[0][:2], next(model.parameters()).device
    batch = {name: torch.tensor([row[name] for row in rows], device=device) for name in data.columns(spec.data)}
    lower = next((dtype for name, dtype in _AUTOCASTS.items() if spec.arguments.get(name)), None)
    mixed = lower is not None and (spec.model.quantization is not None or spec.model.dtype != "float32")
    with torch.no_grad(), torch.autocast(device.type, lower, enabled=mixed):
        return {"logits": logits_of(model.eval()(**batch)).cpu()}


def _of_base(spec: RunSpec) -> Tensors:
    return logits(models.build(spec.model), spec)


def switched_off(trace: Trace) -> Verdict:
    """Check that the trained model with its adapter disabled computes what the base computes, bit for bit.

    The verdict is NOT_COMPARABLE if biases of the base are trained, since peft documents that disabling leaves them trained,
    and if injection changed the base.
    """
    expected = "with its adapter disabled the trained model is the base, bit for bit"
    spec = trace.spec
    if reason := base_weights.changed_by_injection(spec.adapter):
        return Verdict(NOT_COMPARABLE, expected, (reason,))
    if spec.adapter.config.get("bias", "none") != "none":
        return Verdict(NOT_COMPARABLE, expected, ("biases of the base are trained, and disabling leaves them trained",))
    if findings := incomplete(trace):
        return verdict(expected, findings)
    return off_and_on(trained_model(trace), spec)


def off_and_on(model: Any, spec: RunSpec) -> Verdict:
    """Check that a model with disabled adapters computes what its base does, and enabled again what it did before.

    - model: a model of the spec, with any values of its adapters.

    If the model computes at first, but not any more when its adapters are enabled again, that is a finding.
    """
    before = logits(model, spec)
    if spec.adapter.route == GET:
        with model.disable_adapter():
            off = logits(model, spec)
    else:
        model.disable_adapters()
        off = logits(model, spec)
        model.enable_adapters()
    findings = differences(off, _of_base(spec), 0.0, "disabled:")
    findings += _apart(model, spec, before, 0.0, "enabled again:")
    return verdict("with its adapter disabled the model is the base, bit for bit", findings)


def _apart(model: Any, spec: RunSpec, expected: Tensors, bound: float, when: str) -> list[str]:
    """Return how a model's logits differ from those expected of it, or which error it raises."""
    try:
        here = logits(model, spec)
    except Exception as error:
        return [f"{when} the model raises {type(error).__name__}: {error}"]
    return differences(here, expected, bound, when)


def merged(trace: Trace) -> Verdict:
    """Check that the merged adapter computes what it did unmerged, and that unmerging restores the base's weights.

    The verdict is NOT_COMPARABLE in these cases:

    - The method adapts no layer, so that there is nothing to merge.
    - peft says that it does not merge, or not unmerge, such an adapter.
    - The base is in half precision or quantized, where rounding is as large as an adapter.
    """
    expected = "a merged adapter computes what it did unmerged, and unmerging gives the base back"
    spec = trace.spec
    if spec.model.dtype != "float32" or spec.model.quantization:
        return Verdict(NOT_COMPARABLE, expected, (f"a base in {spec.model.quantization or spec.model.dtype} rounds",))
    if reason := unmergeable(spec):
        return Verdict(NOT_COMPARABLE, expected, (reason,))
    if findings := incomplete(trace):
        return verdict(expected, findings)
    model = trained_model(trace)
    layers = tuner_layers(model)
    if not layers:
        return Verdict(NOT_COMPARABLE, expected, (f"{spec.adapter.peft_type} adapts no layer, so none is merged",))
    unmerged, base = logits(model, spec), _weights(layers)
    try:
        for layer in layers:
            layer.merge()
    except (NotImplementedError, ValueError) as error:
        if not refuses(error):
            raise
        return Verdict(NOT_COMPARABLE, expected, (f"peft does not merge {spec.adapter.peft_type} here: {error}",))
    findings, sums = differences(logits(model, spec), unmerged, MERGED.loss, "merged:"), _weights(layers)
    if not _weights_differ(sums, base) and differences(unmerged, _of_base(spec), MERGED.loss, ""):
        findings.append("merging left every weight of the base as it was")
    for layer in layers:
        layer.unmerge()
    findings += not_restored(_weights(layers), base, sums)
    findings += differences(logits(model, spec), unmerged, MERGED.loss, "unmerged:")
    return verdict(expected, findings)


def not_restored(seen: Tensors, base: Tensors, sums: Tensors) -> list[str]:
    """Return a sentence for each weight that unmerging does not give back, but for rounding.

    A sum is rounded in proportion to itself. So after an adapter with large values more is lost of a small weight.

    - seen, base, sums: name -> weight: after unmerging, before merging, and while the adapter was merged.
    """
    findings = []
    for name, weight in base.items():
        # Adding and subtracting round by half a unit in the last place of the sum each.
        rounding = largest(sums[name]) * 2**-23
        findings += differences({name: seen[name]}, {name: weight}, max(MERGED.adapter, rounding), "unmerged:")
    return findings


def unmergeable(spec: RunSpec) -> str | None:
    """Return why peft says that it does not merge or unmerge an adapter, None if it says nothing."""
    adapter = spec.adapter
    if adapter.config.get("layer_replication"):
        # peft/tuners/lora/model.py:LoraModel._check_merge_allowed
        return "peft does not merge adapters of replicated layers (layer_replication), which share their weights"
    if adapter.config.get("lora_bias"):
        # peft/tuners/lora/layer.py:Linear.merge
        return "peft merges lora_bias only into layers that have a bias"
    if adapter.peft_type == "OSF":
        # peft/tuners/osf/layer.py:OSFLayer.unmerge
        return "peft does not unmerge OSF"
    return None


def _weights(layers: list[Any]) -> Tensors:
    return {
        f"layer {index} {name}": parameter.detach().clone()
        for index, layer in enumerate(layers)
        for name, parameter in layer.get_base_layer().named_parameters()
    }


def _weights_differ(one: Tensors, other: Tensors) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in other)


def loaded(trace: Trace, through: str, base: Any = None) -> Any:
    """Return a base with the adapter of the last checkpoint loaded into it as "default".

    - through: "from_pretrained" (of PeftModel) or "load_adapter" (of a transformers model).
    - base: the base; None builds a new one.

    PeftModel is given the option autocast_adapter_dtype of the spec, as peft asks of who has trained with it.
    """
    from peft import PeftModel

    from harness.subjects.hf_trainer import recorded_warnings

    last = trace.checkpoints[-1]
    file = Path(last.path) / next(iter(adapter_files(last)), ADAPTER_FILE)
    base = base or models.build(trace.spec.model)
    with recorded_warnings([]):
        if through == "from_pretrained":
            options = {name: value for name, value in trace.spec.adapter.options.items() if name == _KEPT_OPTION}
            return PeftModel.from_pretrained(base, str(file.parent), **options)
        base.load_adapter(str(file.parent))
    return base


def reloads(trace: Trace, through: str = "from_pretrained", base: Any = None) -> Verdict:
    """Check that the adapter loaded from the last checkpoint is the trained one: its tensors, and the logits.

    - through, base: see `loaded`. If a base is given, its logits are not compared.

    A prompt encoder is not saved itself: its output is (CKPT-25). AdaLoRA saves only the ranks that it has allocated. In both
    cases only the logits are compared.

    The verdict is NOT_COMPARABLE in these cases:

    - Injection draws random numbers to change the base, or another adapter's injection changes it, too.
    - A prompt encoder stands before a base that computes in half precision: its output, which is saved for one row, is
      rounded otherwise than for a batch, and the base makes more of that.
    - No checkpoint of the last step is left: save_strategy "best" may write none, and save_total_limit=1 deletes it at the
      end if an earlier one is the best.
    """
    expected = "a loaded adapter is the trained one"
    adapter = trace.spec.adapter
    if reason := base_weights.redrawn_by_loading(adapter) or base_weights.changed_by_others(adapter):
        return Verdict(NOT_COMPARABLE, expected, (f"{reason}, so the adapter alone is not the trained model",))
    if _encodes_prompt(trace.spec) and _computes_in_half(trace.spec):
        return Verdict(
            NOT_COMPARABLE,
            expected,
            ("the saved output of a prompt encoder is rounded otherwise, and half precision makes more of that",),
        )
    if not trace.checkpoints:
        return verdict(expected, incomplete(trace) or ["no checkpoint was written"])
    last, done = trace.checkpoints[-1].step, trace.output.get("global_step")
    if done is not None and last != done:
        return Verdict(
            NOT_COMPARABLE, expected, (f"the last checkpoint is of step {last}, not of the last step {done}",)
        )
    model = loaded(trace, through, base)
    tensors = {name: parameter.detach().cpu() for name, parameter in adapter_of(model, trace, "default").items()}
    same = same_adapter(tensors, trace.adapter)
    if base is not None:
        return same
    cut = trace.spec.adapter.peft_type == "ADALORA" and any(
        name in trace.adapter and tensor.shape != trace.adapter[name].shape for name, tensor in tensors.items()
    )
    bound = EXACT if trace.spec.launch.device == "cpu" and not cut else REBUILT
    apart = _apart(model, trace.spec, logits(trained_model(trace), trace.spec), bound.loss, "loaded:")
    computes = verdict(f"it computes what the trained one does ({bound.name})", apart)
    return computes if cut or _encodes_prompt(trace.spec) else both(same, computes)


def _computes_in_half(spec: RunSpec) -> bool:
    return spec.model.dtype in HALF or any(spec.arguments.get(name) for name in ("bf16", "fp16"))


def _encodes_prompt(spec: RunSpec) -> bool:
    return spec.adapter.peft_type == "P_TUNING" or bool(spec.adapter.config.get("prefix_projection"))
