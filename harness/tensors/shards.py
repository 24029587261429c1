"""Tensors of a model that is spread over ranks: which part is where, and how to assemble whole tensors.

Every function that assembles tensors is a collective: all ranks must call it, in the same order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from harness.tensors import names

if TYPE_CHECKING:
    import torch

#: Classes of modules that spread or wrap others. They show what was really done.
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "CheckpointWrapper", "DeepSpeedEngine")


def evidence(wrapped: torch.nn.Module, adapter: str) -> dict[str, Any]:
    """Return how a model is spread, as JSON, for this rank:

    - wrapper: the class of the outermost module.
    - units: path -> class of each module that wraps or shards another ("FSDPModule": made by fully_shard).
    - kinds: canonical parameter name -> "DTensor", "FlatParameter", "ZeRO" or "Parameter".
    - local: canonical parameter name -> number of its elements on this rank.
    - dtypes: canonical parameter name -> dtype.
    - flat: the number of flat parameters that FSDP1 has made.
    - find_unused_parameters: DDP's setting; None for other wrappers.
    """
    units = {}
    for raw, module in wrapped.named_modules():
        path = names.canonical(f"{raw}.", adapter).removesuffix(".")
        if any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__):
            units[path] = "FSDPModule"
        elif type(module).__name__ in _WRAPPERS:
            units[path] = type(module).__name__
    flat = sum(
        getattr(module, "_flat_param", None) is not None
        for module in wrapped.modules()
        if type(module).__name__ == "FullyShardedDataParallel"
    )
    kinds, local, dtypes = {}, {}, {}
    parameter: Any
    for raw, parameter in _inner(wrapped).named_parameters():
        name = names.canonical(raw, adapter)
        sharded = hasattr(parameter, "to_local")
        partition = getattr(parameter, "ds_tensor", None)  # the parameter itself is empty under ZeRO-3
        kinds[name] = "DTensor" if sharded else "ZeRO" if partition is not None else _flat_or_not(raw)
        here = parameter.to_local() if sharded else parameter if partition is None else partition
        local[name] = here.numel()
        dtypes[name] = str(parameter.dtype).removeprefix("torch.")
    return {
        "wrapper": type(wrapped).__name__,
        "units": units,
        "kinds": kinds,
        "local": local,
        "dtypes": dtypes,
        "flat": flat,
        "find_unused_parameters": getattr(wrapped, "find_unused_parameters", None),
    }


def _flat_or_not(raw: str) -> str:
    # Within a unit of FSDP1, a parameter is a view into the unit's FlatParameter.
    return "FlatParameter" if "_fsdp_wrapped_module" in raw else "Parameter"


def _inner(wrapped: torch.nn.Module) -> torch.nn.Module:
    return wrapped if is_fsdp1(wrapped) else getattr(wrapped, "module", wrapped)


def is_fsdp1(module: torch.nn.Module | None) -> bool:
    return type(module).__name__ == "FullyShardedDataParallel"


def whole_all(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Apply `whole` to each tensor, with one message between the ranks instead of one for each tensor."""
    sharded: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if hasattr(tensor, "full_tensor")}
    if len({tensor.dtype for tensor in sharded.values()}) != 1 or not all(map(_by_rows, sharded.values())):
        return {name: whole(tensor) for name, tensor in tensors.items()}
    import torch

    mesh = next(iter(sharded.values())).device_mesh
    # With cpu_offload shards lie on the CPU, which may have no backend. They move to the device of the mesh.
    local = [tensor.to_local().to(mesh.device_type).reshape(-1) for tensor in sharded.values()]
    sizes = {
        name: [_rows(tensor, rank) * _row(tensor) for rank in range(mesh.size())] for name, tensor in sharded.items()
    }
    # Rank 0 has the most rows of each tensor. The other ranks pad their messages to its length.
    longest = sum(counts[0] for counts in sizes.values())
    message = torch.cat([*local, local[0].new_zeros(longest - sum(part.numel() for part in local))])
    received = [torch.empty_like(message) for _ in range(mesh.size())]
    torch.distributed.all_gather(received, message, group=mesh.get_group())
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in sharded}
    for rank, body in enumerate(received):
        start = 0
        for name, counts in sizes.items():
            parts[name].append(body[start : start + counts[rank]])
            start += counts[rank]
    return {
        name: torch.cat(parts[name]).reshape(tensor.shape) if name in sharded else tensor
        for name, tensor in tensors.items()
    }


def _by_rows(tensor: Any) -> bool:
    """Return whether a DTensor is split along its first dimension over a one-dimensional mesh, as fully_shard does."""
    nested = hasattr(tensor.to_local(), "to_local")
    return tensor.device_mesh.ndim == 1 and tensor.placements[0].is_shard(0) and not nested


def _rows(tensor: Any, rank: int) -> int:
    """Return how many rows of a DTensor lie on a rank. All chunks have one size; the last ones may be shorter or empty."""
    total: int = tensor.shape[0]
    chunk: int = -(-total // tensor.device_mesh.size())
    return max(0, min(chunk, total - rank * chunk))


def _row(tensor: torch.Tensor) -> int:
    return tensor.shape[1:].numel()


def on_any_rank(found: list[str], wrapped: torch.nn.Module | None) -> list[str]:
    """Return the names that this rank found. Under FSDP1, where each rank has other parameters, those of all ranks."""
    if not is_fsdp1(wrapped):
        return found
    import torch

    of_each: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(of_each, found)
    return list(dict.fromkeys(name for names_ in of_each for name in names_))


def hides_gradients(wrapped: torch.nn.Module | None) -> bool:
    """Return whether parameters hold no gradients, because DeepSpeed's engine moves them to its own buffers."""
    return type(wrapped).__name__ == "DeepSpeedEngine"


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor. A DTensor is assembled from the shards of all ranks."""
    # A loop, because accelerate 1.14 resumes to DTensors of DTensors.
    while hasattr(tensor, "full_tensor"):
        mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
        tensor = tensor.to(mesh.device_type).full_tensor()  # type: ignore[attr-defined]
    return tensor


@contextlib.contextmanager
def gathered(model: torch.nn.Module, wrapped: torch.nn.Module | None, with_grads: bool = False) -> Iterator[None]:
    """Make every parameter of the model whole within the block, except DTensors, for which there is `whole`.

    - wrapped: what the trainer calls in place of the model; None if it calls the model itself.
    - with_grads: whether gradients become whole, too (FSDP1).
    """
    if wrapped is not None and is_fsdp1(wrapped):
        from torch.distributed.fsdp import FullyShardedDataParallel

        with FullyShardedDataParallel.summon_full_params(wrapped, writeback=False, with_grads=with_grads):
            yield
    elif any(hasattr(parameter, "ds_tensor") for parameter in model.parameters()):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            yield
    else:
        yield


def state(model: torch.nn.Module, wrapped: torch.nn.Module | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the raw name and the whole tensor of everything in state_dict()."""
    with gathered(model, wrapped):
        if wrapped is not None and is_fsdp1(wrapped):
            # state_dict() of FSDP1 gathers and renames by its own rules. With one rank it fails.
            for name, tensor in _held(model, _flattened(wrapped)):
                # A copy, because FSDP1 frees the memory at the end of the block, which numpy would not allow.
                yield name, tensor.detach().clone()
        else:
            state_dict = {name: tensor for name, tensor in model.state_dict().items() if hasattr(tensor, "dtype")}
            yield from whole_all(state_dict).items()


def _flattened(wrapped: torch.nn.Module) -> set[tuple[int, str]]:
    """Return the id of the module and the name of each parameter that FSDP1 has put into a flat one."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    handles = [unit._handle for unit in FullyShardedDataParallel.fsdp_modules(wrapped)]
    flat = [handle.flat_param for handle in handles if handle is not None]
    return {
        (id(info.module), info.param_name) for one in flat for info in (*one._param_infos, *one._shared_param_infos)
    }


def _held(model: torch.nn.Module, flattened: set[tuple[int, str]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters and saved buffers of a model within FSDP1. With one rank it has plain tensors as parameters.

    - flattened: what `_flattened` returns. Other plain tensors of a module are not in its state_dict().
    """
    import torch

    # state_dict() lists a module under each of its names, too: a prompt encoder holds the base's embedding once more. So it
    # does a tensor: adapters of VeRA share theirs.
    for path, module in model.named_modules(remove_duplicate=False):
        held = {
            **{name: value for name, value in vars(module).items() if (id(module), name) in flattened},
            **dict(module.named_parameters(recurse=False, remove_duplicate=False)),
            **dict(module.named_buffers(recurse=False, remove_duplicate=False)),
        }
        for name, tensor in held.items():
            if (
                isinstance(tensor, torch.Tensor)
                and not name.startswith("_")
                and name not in module._non_persistent_buffers_set
            ):
                yield f"{path}.{name}", tensor
