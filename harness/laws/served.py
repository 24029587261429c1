"""An adapter that another process has loaded: whether it is what was trained. `harness.runs.elsewhere` loads it.

How far a merged model may be from the live one (`merged`):

1. Merging rounds each weight W + dW once to the base's dtype: a relative error of at most u, half a unit in its last place.
   A layer's output then has a relative error of about u, as if the output itself were rounded once more.
2. The live model rounds at least three times in each adapted layer (base's product, adapter's product, their sum), and some
   ten times more in each block. Each rounding is one of size u. They add up over the depth of the model.
3. So merging costs less than computing in that dtype costs already. The latter is measured on the model itself: it is the
   distance of the live model from the same model computed in float64, which has its dtype, width and depth in it.
4. Both models are that far from float64. The bound is four times the distance, since a largest element is no mean.

Measured on two cores on 2026-11-29, over 35 adapters in float32 and 32 in bfloat16: 0.7 to 1.5 times the distance.

A packed base is packed again when an adapter is merged into it, which costs more than rounding. The weights that must come
out are computed here: the live layer is given the identity matrix, which returns its weights with the adapter in them, and
these are packed and unpacked by bitsandbytes' own functions. In four bits, the merged model must be nearer to that than a
quarter of what packing costs. In eight bits, the inputs of each layer are packed as well, in the live and in the merged
model, so the bound is four times that cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from harness import compat
from harness.fixtures import data, models
from harness.laws.base_weights import changed_by_injection
from harness.laws.completion import incomplete
from harness.laws.equal import differences, largest, largest_gap
from harness.laws.rebuilt import trained_model, tuner_layers
from harness.spec import RunSpec
from harness.tolerance import EXACT, REBUILT, scaled
from harness.tolerance import MERGED as MERGED_NOISE
from harness.trace import Tensors, Trace
from harness.verdict import NOT_COMPARABLE, Unjudged, Verdict, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The ways to load an adapter. "merged" is merge_and_unload, save_pretrained, and from_pretrained of what that wrote.
FROM_PRETRAINED, AUTO, LOAD_ADAPTER, STATE_DICT, MERGED = (
    "from_pretrained",
    "auto",
    "load_adapter",
    "state_dict",
    "merged",
)

#: The key of the merged model's logits before it was saved.
BEFORE_SAVING = "merged, before saving"

#: See 4. above.
FACTOR = 4.0

#: The share of what packing costs that a merged packed model may be away from what must come out. Rounding moves single
#: weights to the next of 16 values.
SHARE = 0.25


@dataclass
class Answer:
    """What another process has found.

    - logits: way -> logits.
    - errors: way -> the error that it raised.
    - changed: way -> names of base weights that loading changed.
    - written: files of the adapter's and the base's directory that are changed or new after all the ways.
    - config: what adapter_config.json says.
    - named: tensor -> shape, of an adapter that is made from adapter_config.json alone.
    - saved: tensor -> shape, in the adapter's file.
    """

    logits: Tensors = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    changed: dict[str, list[str]] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    named: dict[str, list[int]] = field(default_factory=dict)
    saved: dict[str, list[int]] = field(default_factory=dict)


def inputs(spec: RunSpec) -> dict[str, list[list[int]]]:
    """Return the inputs of a spec's first two rows, without labels. A seq2seq model is given its labels as a start."""
    made = data.rows(spec.data)[0][:2]
    found = {name: [row[name] for row in made] for name in ("input_ids", "attention_mask")}
    if spec.data.task == models.SEQ2SEQ:
        found["decoder_input_ids"] = [[max(token, 0) for token in row["labels"]] for row in made]
    return found


def logits(model: Any, rows: Mapping[str, list[list[int]]]) -> torch.Tensor:
    """Return a model's logits in eval mode, as it computes them, moved to the CPU. There is no autocast.

    - model: on any device; a packed model may be on a GPU.
    """
    device = next(model.parameters()).device
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**{name: torch.tensor(ids, device=device) for name, ids in rows.items()})[
            "logits"
        ]
    return found.cpu()


def computes(trace: Trace, answer: Answer, way: str) -> Verdict:
    """Check that the adapter that was loaded by a way computes what the live model computes, bit for bit.

    After a run on a GPU the two may differ by `REBUILT`: what the file holds of a prompt encoder was computed on the GPU.
    """
    bound = EXACT if trace.spec.launch.device == "cpu" else REBUILT
    expected = f"the adapter computes elsewhere what it computed in the process that trained it ({bound.name})"
    if findings := incomplete(trace):
        return verdict(expected, findings)
    if way in answer.errors:
        return verdict(expected, [f"{way} raises {answer.errors[way]}"])
    live = logits(trained_model(trace), inputs(trace.spec))
    return verdict(expected, differences({"logits": answer.logits[way]}, {"logits": live}, bound.loss, f"{way}:"))


def merged(trace: Trace, answer: Answer) -> Verdict:
    """Check that the merged model is within rounding of the live one, and that saving and loading it changes no bit.

    The docstring of this module derives the bound. If the adapter's effect is below it, no fault could show, and the verdict
    is NOT_COMPARABLE.
    """
    expected = "merged, saved and loaded, the model computes within rounding what the live model computes"
    if findings := incomplete(trace):
        return verdict(expected, findings)
    if MERGED in answer.errors:
        return verdict(expected, [f"{MERGED} raises {answer.errors[MERGED]}"])
    spec = trace.spec
    if reason := changed_by_injection(spec.adapter):
        return Verdict(NOT_COMPARABLE, expected, (reason,))
    seen = answer.logits[MERGED]
    findings = differences({"logits": seen}, {"logits": answer.logits[BEFORE_SAVING]}, 0.0, "saved and loaded:")
    live, rows = trained_model(trace), inputs(spec)
    unmerged, base = logits(live, rows), logits(models.build(spec.model), rows)
    if spec.model.quantization is None:
        exact, bound = _exactly(live, rows, unmerged)
    else:
        exact = _packed_again(live, rows)
        # In eight bits the layers' inputs are packed, too, in the live and in the merged model.
        bound = (FACTOR if spec.model.eight_bit else SHARE) * largest_gap(unmerged, exact)
    gap, effect = largest_gap(seen, exact), largest_gap(unmerged, base)
    if not effect > bound:
        findings.append(Unjudged(f"the adapter changes the logits by {effect:.3g}, and the bound is {bound:.3g}"))
    if not gap <= bound:
        findings.append(
            f"merged: logits differ by {gap:.3g} at most from what must come out; {bound:.3g} is what rounding explains"
        )
    return verdict(expected, findings, merged_gap=gap, merged_bound=bound, adapter_effect=effect)


def _exactly(model: Any, rows: Mapping[str, list[list[int]]], computed: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the logits that a merged model must have, and how far it may be from them. The model is in float64 afterwards.

    - computed: the live model's logits in its own dtype.

    Some methods and models of older releases cast to float32 themselves, and compute nothing in float64. Then the live
    model's own logits are taken, and the bound that was measured for float32 (`MERGED`).
    """
    compat.compute_experts_eagerly(model)
    try:
        exact = logits(model.double(), rows)
    except RuntimeError:
        if computed.dtype != torch.float32:
            raise
        return computed, scaled(MERGED_NOISE.loss, largest(computed))
    return exact, FACTOR * largest_gap(computed, exact)


def _packed_again(model: Any, rows: Mapping[str, list[list[int]]]) -> torch.Tensor:
    """Return the logits of a live model whose adapted layers compute with their weights packed again, adapter included."""
    hooks = []
    for layer in tuner_layers(model):
        base = layer.get_base_layer()
        bias = None if base.bias is None else base.bias.detach().float()
        eye = torch.eye(base.in_features, device=base.weight.device)
        with torch.no_grad():
            whole = layer.eval()(eye).float() - (0.0 if bias is None else bias)
        weight = _unpacked(whole.T.contiguous(), base.weight)

        def compute(module: Any, given: Any, output: Any, weight: Any = weight, bias: Any = bias) -> Any:
            return torch.nn.functional.linear(given[0].float(), weight, bias).to(output.dtype)

        hooks.append(layer.register_forward_hook(compute))
    try:
        return logits(model, rows)
    finally:
        for hook in hooks:
            hook.remove()


def _unpacked(weight: torch.Tensor, packed: Any) -> torch.Tensor:
    """Return a weight packed as the base's is, and unpacked."""
    from bitsandbytes import functional

    state = getattr(packed, "quant_state", None)
    if state is None:
        # Eight bits: 254 equal steps between the largest number of a row and its negative.
        step = weight.abs().amax(dim=1, keepdim=True) / 127
        return (weight / step).round() * step
    values, made = functional.quantize_4bit(
        weight, blocksize=state.blocksize, quant_type=state.quant_type, compress_statistics=state.nested
    )
    found: torch.Tensor = functional.dequantize_4bit(values, made)
    return found


def named(trace: Trace, answer: Answer) -> Verdict:
    """Check that adapter_config.json names what was trained.

    - Each field that the run's adapter was made with has the same value. Lists of names may have another order, and peft
      adds the head of a classifier to modules_to_save.
    - It names the base's directory, if the base came from one.
    - An adapter that is made from the file alone has exactly the tensors, with the shapes, that the adapter's file holds.
    """
    expected = "adapter_config.json names what was trained"
    spec = trace.spec
    if findings := incomplete(trace):
        return verdict(expected, findings)
    if STATE_DICT in answer.errors and not answer.saved:
        return verdict(expected, [f"{STATE_DICT} raises {answer.errors[STATE_DICT]}"])
    findings = list(_fields(spec, answer.config))
    origin = models.build(spec.model).name_or_path if ":" in spec.model.family else ""
    if origin and answer.config.get("base_model_name_or_path") != origin:
        found = answer.config.get("base_model_name_or_path")
        findings.append(f"base_model_name_or_path is {found!r}, expected {origin!r}")
    for name in sorted({*answer.named, *answer.saved}):
        here, there = answer.named.get(name), answer.saved.get(name)
        if here != there and not (here is None and _is_beside(name, answer)):
            findings.append(
                f"{name} is {there or 'absent'} in the file, {here or 'absent'} in an adapter made by config"
            )
    return verdict(expected, findings, tensors=len(answer.saved))


def _fields(spec: RunSpec, config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("peft_type") != spec.adapter.peft_type:
        yield f"peft_type is {config.get('peft_type')!r}, expected {spec.adapter.peft_type!r}"
    for name, value in spec.adapter.config.items():
        found = config.get(name)
        if isinstance(value, (list, tuple)) and isinstance(found, list):
            missing, more = set(map(str, value)) - set(map(str, found)), set(map(str, found)) - set(map(str, value))
            if not missing and (not more or name == "modules_to_save"):
                continue
        if found != value:
            yield f"{name} is {found!r}, expected {value!r}"


def _is_beside(name: str, answer: Answer) -> bool:
    """Return whether a tensor of the file is a base's weight that peft saves beside the adapter of its layer (EMB-05)."""
    layer = name.rpartition(".")[0].removesuffix(".base_layer")
    return any(other.startswith(f"{layer}.") and other != name for other in answer.named)


def unchanged(trace: Trace, answer: Answer) -> Verdict:
    """Check that loading changed no weight of the base, and no file of the adapter's and the base's directories."""
    expected = "loading an adapter changes no weight of the base, and no file"
    if findings := incomplete(trace):
        return verdict(expected, findings)
    if reason := changed_by_injection(trace.spec.adapter):
        return Verdict(NOT_COMPARABLE, expected, (reason,))
    findings = [
        f"{way}: {len(names)} weights of the base are changed, {names[0]} first"
        for way, names in answer.changed.items()
        if names
    ]
    findings += [f"{name} was written" for name in answer.written]
    return verdict(expected, findings)
