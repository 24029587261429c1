"""Layers that are split over ranks (tensor parallelism): where their parts are, and what adapters beside them start with."""

from __future__ import annotations

import math
import re

import torch

from harness.laws.equal import differences
from harness.laws.several import incomplete_ranks
from harness.tolerance import MERGED
from harness.trace import Trace
from harness.verdict import Unjudged, Verdict, verdict

#: Linear layers of a Llama that its plan splits by rows. The others are split by columns.
ROWWISE = ("o_proj", "down_proj")
COLUMNWISE = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


def is_split(name: str) -> bool:
    """Return whether a parameter of a Llama belongs in parts on the ranks: name is its canonical name."""
    layer = re.search(r"\.(\w+_proj)\.", name)
    if ".lora_A." in name:
        return layer is not None and layer[1] in ROWWISE
    if ".lora_B." in name:
        return layer is not None and layer[1] in COLUMNWISE
    return layer is not None or name.startswith(("lm_head.", "model.embed_tokens."))


def in_parts(trace: Trace) -> Verdict:
    """Check which parameters are split over the ranks of a group, and that what is trained and not split is whole."""
    findings = incomplete_ranks(trace)
    together = trace.spec.launch.ranks // trace.spec.launch.row_ranks
    local = [one.distributed.get("local", {}) for one in (trace, *trace.ranks)]
    for name, (_, shape) in trace.parameters.items():
        size, here = math.prod(shape), [elements.get(name, 0) for elements in local]
        sharded = trace.spec.launch.row_ranks > 1 and name not in trace.trainable
        if sharded or is_split(name):
            copies = 1 if sharded and is_split(name) else trace.spec.launch.row_ranks
            expected = size * (together if sharded and not is_split(name) else copies)
            if sum(here) != expected or (is_split(name) and max(here) == size):
                findings.append(f"{name}: {here} of its {size} elements lie on the ranks; expected parts of it")
        elif set(here) != {size}:
            findings.append(f"{name}: {here} of its {size} elements lie on the ranks; expected all of them on each")
    if not any(is_split(name) for name in trace.trainable):
        findings.append(Unjudged("no trained parameter lies beside a layer that is split"))
    return verdict("layers and the adapters beside them lie in parts on the ranks", findings[:4], ranks=len(local))


def drawn_whole(trace: Trace) -> Verdict:
    """Check how the split matrices of an adapter start: no part a copy of another, no number beyond kaiming's bound.

    The run may have failed later. If every number is zero, as in lora_B, there is nothing to judge in a matrix.
    """
    parts = trace.spec.launch.ranks // trace.spec.launch.row_ranks
    findings, judged = [], 0
    for name, value in trace.adapter_before.items():
        if ".lora_A." not in name:
            continue
        judged += 1
        # kaiming_uniform_ with a = sqrt(5) draws between +-1 / sqrt(columns) (torch/nn/modules/linear.py).
        bound, largest = 1 / math.sqrt(value.shape[1]), float(value.abs().max())
        if is_split(name):
            first, *others = value.chunk(parts, dim=1)
            if any(torch.equal(first, other) for other in others):
                findings.append(f"{name}: each of its {parts} parts has the same numbers")
        if largest > bound * (1 + 1e-6):
            findings.append(f"{name}: its largest number is {largest:.4f}, a whole matrix has at most {bound:.4f}")
    if not judged:
        findings.append(Unjudged(f"no adapter was seen: {trace.error}"))
    return verdict("split matrices are drawn as whole ones", findings[:4], matrices=judged)


def restored(resumed: Trace, whole: Trace, step: int) -> Verdict:
    """Check that a resumed run begins with the adapter of a checkpoint, bit for bit, and with the step after it.

    - whole: the run that saved.
    - step: the checkpoint's.
    """
    findings = incomplete_ranks(resumed) + [f"(the run that saved) {reason}" for reason in incomplete_ranks(whole)]
    saved = next((one for one in whole.checkpoints if one.step == step), None)
    if saved is None:
        findings.append(f"no checkpoint of step {step} was written")
    else:
        findings += differences(resumed.adapter_resumed, saved.adapter, 0.0, "before the first step:")[:2]
    first = [one.number for one in resumed.steps][:1]
    if resumed.error is None and first != [step + 1]:
        findings.append(f"the first step is {first}, expected {step + 1}")
    return verdict(f"the run goes on from checkpoint-{step}", findings)


def merges(trace: Trace) -> Verdict:
    """Check what each rank saw of merging: `Trace.distributed["afterwards"]` is {"apart": A, "effect": E}.

    - apart: the largest difference of logits, merged and unmerged.
    - effect: the same with the adapter switched off and on. Merging nothing would be as far apart as that.
    """
    findings = incomplete_ranks(trace)
    seen = [rank.distributed.get("afterwards") or {} for rank in (trace, *trace.ranks)]
    for rank, found in enumerate(seen):
        apart, effect = found.get("apart", math.nan), found.get("effect", math.nan)
        if not apart <= MERGED.loss:
            findings.append(
                f"rank {rank}: merged logits are {apart:.3g} away from unmerged ones, at most {MERGED.loss}"
            )
        if not effect > MERGED.loss:
            findings.append(Unjudged(f"rank {rank}: the adapter changes logits by {effect:.3g} only"))
    return verdict("a merged adapter computes what it did unmerged", findings, ranks=len(seen))
