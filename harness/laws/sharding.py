"""How a model is sharded over ranks by FSDP, and what stays whole on each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.laws.several import incomplete_ranks
from harness.trace import Trace
from harness.verdict import Verdict, verdict

#: Strategy -> the type of parameter that it makes, and the class of a sharded module.
_SHARDED = {"fsdp1": ("FlatParameter", "FullyShardedDataParallel"), "fsdp2": ("DTensor", "FSDPModule")}


def sharded(trace: Trace, strategy: str | None = None) -> Verdict:
    """Check that FSDP shards every parameter: each element of it lies on exactly one rank.

    FSDP1 makes each parameter a part of a FlatParameter, FSDP2 makes it a DTensor.

    - strategy: "fsdp1" or "fsdp2"; None for the spec's.
    """
    kind, unit = _SHARDED[strategy or trace.spec.launch.strategy]
    findings = incomplete_ranks(trace)
    kinds = trace.distributed.get("kinds", {})
    units = [path for path, name in trace.distributed.get("units", {}).items() if name == unit]
    if not units:
        wrapper = trace.distributed.get("wrapper")
        findings.append(f"no module is an {unit}: the model is wrapped in {wrapper}")
    plain = sorted(name for name, seen in kinds.items() if seen != kind)
    if plain or not kinds:
        findings.append(f"{len(plain)} of {len(kinds)} parameters are no {kind}, {plain[:1]} for one")
    if kind == "FlatParameter" and not trace.distributed.get("flat"):
        findings.append("no module has a FlatParameter")
    local = [rank.distributed.get("local", {}) for rank in (trace, *trace.ranks)]
    for name, (_, shape) in trace.parameters.items():
        parts = [elements.get(name, 0) for elements in local]
        if sum(parts) != math.prod(shape):
            findings.append(f"{name} has {math.prod(shape)} elements, but {parts} of them lie on the ranks")
            break
    return verdict(f"every parameter is sharded, as {kind}", findings, units=len(units), parameters=len(kinds))


def base_sharded_adapter_whole(trace: Trace) -> Verdict:
    """Check a model whose base was sharded while it was loaded, before the adapter was injected.

    Each element of the base must lie on exactly one rank. Each trained parameter must be whole on every rank.
    """
    findings = incomplete_ranks(trace)
    kinds = trace.distributed.get("kinds", {})
    local = [rank.distributed.get("local", {}) for rank in (trace, *trace.ranks)]
    for name, (_, shape) in trace.parameters.items():
        size, parts = math.prod(shape), [elements.get(name, 0) for elements in local]
        if name in trace.trainable and (kinds.get(name) != "Parameter" or set(parts) != {size}):
            findings.append(
                f"{name}, which is trained, is a {kinds.get(name)} with {parts} of its {size} elements on the ranks; "
                "expected a Parameter with all of them on each"
            )
        if name not in trace.trainable and (kinds.get(name) != "DTensor" or sum(parts) != size):
            findings.append(
                f"{name}, of the base, is a {kinds.get(name)} with {parts} of its {size} elements on the ranks; "
                "expected a DTensor with each element on one"
            )
    return verdict(
        "the base is sharded, and what is trained is whole on each rank", findings[:4], parameters=len(kinds)
    )


def units(trace: Trace, expected: Sequence[str]) -> Verdict:
    """Check that exactly these modules are FSDP units.

    - expected: paths in the base model; "" is the whole model.
    """
    seen = {
        path
        for path, name in trace.distributed.get("units", {}).items()
        if name in ("FullyShardedDataParallel", "FSDPModule")
    }
    findings = incomplete_ranks(trace)
    findings += [f"{path or 'the model'} is a unit, unexpected" for path in sorted(seen - set(expected))]
    findings += [f"{path or 'the model'} is no unit" for path in sorted(set(expected) - seen)]
    return verdict(f"{len(expected)} modules are units of FSDP", findings, units=len(seen))


def dtypes_kept(trace: Trace) -> Verdict:
    """Check that sharding the model leaves each frozen parameter in the dtype that it had before."""
    findings = incomplete_ranks(trace)
    dtypes = trace.distributed.get("dtypes", {})
    for name, (dtype, _) in trace.parameters.items():
        if name not in trace.trainable and dtypes.get(name) != dtype:
            findings.append(f"{name} was {dtype}, after sharding it is {dtypes.get(name)}")
    return verdict("frozen parameters keep their dtype", findings[:4], parameters=len(dtypes))


def same_tokens(trace: Trace, length: int = 12) -> Verdict:
    """Check that all ranks generate the same tokens after training (`Trace.distributed["afterwards"]`).

    - length: how many tokens each must generate.
    """
    generated = [rank.distributed.get("afterwards", []) for rank in (trace, *trace.ranks)]
    findings = [
        f"rank {rank} generated tokens {tokens}, expected {length} tokens, the same as rank 0's: {generated[0]}"
        for rank, tokens in enumerate(generated)
        if len(tokens) != length or tokens != generated[0]
    ]
    return verdict("every rank generates the same tokens", incomplete_ranks(trace) + findings)
