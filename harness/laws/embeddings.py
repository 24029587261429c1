"""Embedding and output layers: whether they are trained or frozen, saved whole or not at all, tied or separate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from harness.laws.checkpoint import adapter_files
from harness.laws.completion import incomplete
from harness.laws.equal import is_finite
from harness.subjects.observer import digest
from harness.tensors import names
from harness.trace import Tensors, Trace
from harness.verdict import Unjudged, Verdict, verdict

#: Canonical tensor name -> shape.
Shapes = Mapping[str, Sequence[int]]


def tensors_saved(trace: Trace, expected: Shapes, dtype: str = "F32") -> Verdict:
    """Check that each adapter file of each checkpoint holds exactly these tensors.

    - expected: canonical name -> shape.
    - dtype: the dtype of all of them, as safetensors names it.
    """
    findings = incomplete(trace) + _unsaved(trace)
    for where, tensors in _files(trace).items():
        findings += [f"{where}: {name} is saved, unexpected" for name in tensors if name not in expected]
        findings += _misshapen(where, tensors, expected)
        findings += [
            f"{where}: {name} is {kind}, expected {dtype}" for name, (kind, _) in tensors.items() if kind != dtype
        ]
    return verdict(f"an adapter file holds exactly {len(expected)} {dtype} tensors", findings, tensors=len(expected))


def saved_whole(trace: Trace, layers: Shapes) -> Verdict:
    """Check that each adapter file of each checkpoint holds these frozen layers whole, with the model's values.

    - layers: canonical name -> shape.
    """
    findings = incomplete(trace) + _unsaved(trace)
    for where, tensors in _files(trace).items():
        findings += _misshapen(where, tensors, layers)
    _, after = _digests(trace)
    for checkpoint in trace.checkpoints:
        findings += [
            f"checkpoint-{checkpoint.step}: {name} has other values than in the model"
            for name in layers
            if name in checkpoint.adapter and digest(checkpoint.adapter[name]) != after.get(name)
        ]
    return verdict(f"each adapter file holds {', '.join(layers)} whole", findings)


def restored(resumed: Trace, first: Trace, layers: Iterable[str]) -> Verdict:
    """Check that resuming restores these layers.

    - resumed: a run whose model was built with other values in these layers.
    - first: the run that wrote the checkpoint.
    - layers: canonical names.
    """
    findings = incomplete(resumed) + incomplete(first)
    for name in layers:
        if resumed.base_before.get(name) == first.base_before.get(name):
            findings.append(f"{name} was the same before the checkpoint was loaded, so nothing could be restored")
        elif resumed.base.get(name) != first.base.get(name):
            findings.append(f"{name} is not what it was in the run that wrote the checkpoint")
    return verdict("resuming restores the layers that the checkpoint holds", findings)


def reloaded(state: Tensors, trace: Trace, layers: Iterable[str]) -> Verdict:
    """Check that a model into which the adapter was loaded has these layers as they were when training ended.

    - state: the model's state_dict().
    - trace: the run that trained the adapter.
    - layers: canonical names.
    """
    findings = incomplete(trace)
    _, after = _digests(trace)
    here = {names.canonical(raw, trace.spec.adapter.name): tensor for raw, tensor in state.items()}
    for name in layers:
        if name not in here or name not in after:
            findings.append(f"{name} is not in the {'reloaded' if name not in here else 'trained'} model")
        elif digest(here[name]) != after[name]:
            findings.append(f"{name} is not what it was when training ended")
    return verdict("a reloaded adapter restores the layers that it holds", findings)


def moved(trace: Trace, trained: Iterable[str] = (), frozen: Iterable[str] = ()) -> Verdict:
    """Check which tensors of state_dict() training has changed.

    - trained: canonical names of tensors that must have changed.
    - frozen: canonical names of tensors that must be the same, bit for bit.
    """
    findings = incomplete(trace)
    before, after = _digests(trace)
    findings += [
        f"{name} is not in the model" for name in (*trained, *frozen) if name not in before or name not in after
    ]
    findings += [f"{name} is what it was before training" for name in trained if _same(name, before, after)]
    findings += [
        Unjudged(f"{name} is NaN or infinite after training, so no movement was seen")
        for name in trained
        if name in trace.adapter and not is_finite(trace.adapter[name])
    ]
    findings += [
        f"{name} is not what it was before training"
        for name in frozen
        if name in before and name in after and not _same(name, before, after)
    ]
    return verdict("what was asked for is trained, and the rest is frozen", findings)


def tied(trace: Trace, one: str, other: str) -> Verdict:
    """Check that two layers are tied: the same bits before training and after it.

    - one, other: canonical names of their weights.
    """
    findings = incomplete(trace)
    for when, digests in zip(("before", "after"), _digests(trace), strict=True):
        if one not in digests or other not in digests:
            findings.append(f"{one if one not in digests else other} is not in the model {when} training")
        elif digests[one] != digests[other]:
            findings.append(f"{one} and {other} differ {when} training")
    return verdict(f"{one} and {other} are one tensor", findings)


def warned(trace: Trace, words: str, times: int) -> Verdict:
    """Check that a warning with these words was given exactly `times` times."""
    findings = incomplete(trace)
    given = sum(words in warning for warning in trace.warnings)
    if given != times:
        findings.append(f"{given} warnings say {words!r}, expected {times}")
    return verdict(f"{times} warnings say {words!r}", findings)


def _unsaved(trace: Trace) -> list[str]:
    if not trace.checkpoints:
        return ["no checkpoint was written"]
    return [f"checkpoint-{one.step}: no adapter file" for one in trace.checkpoints if not adapter_files(one)]


def _files(trace: Trace) -> dict[str, dict[str, tuple[str, list[int]]]]:
    """Return adapter file (checkpoint-2/adapter_model.safetensors) -> canonical tensor name -> dtype and shape."""
    return {
        f"checkpoint-{checkpoint.step}/{file}": {
            names.canonical(key, trace.spec.adapter.name): (kind, list(shape)) for key, (kind, shape) in tensors.items()
        }
        for checkpoint in trace.checkpoints
        for file, tensors in adapter_files(checkpoint).items()
    }


def _misshapen(where: str, tensors: Mapping[str, tuple[str, list[int]]], expected: Shapes) -> list[str]:
    found = []
    for name, shape in expected.items():
        if name not in tensors:
            found.append(f"{where}: no {name}")
        elif tensors[name][1] != list(shape):
            found.append(f"{where}: {name} is {tensors[name][1]}, expected {list(shape)}")
    return found


def _digests(trace: Trace) -> tuple[dict[str, str], dict[str, str]]:
    """Return canonical name -> digest of every tensor of state_dict(), before training and after it."""
    before = {**trace.base_before, **{name: digest(tensor) for name, tensor in trace.adapter_before.items()}}
    after = {**trace.base, **{name: digest(tensor) for name, tensor in trace.adapter.items()}}
    return before, after


def _same(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    return name in before and before[name] == after.get(name)
