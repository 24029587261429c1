"""Let accelerate use FSDP and tensor parallelism on a CPU. A case that trains under these shims has "/shimmed" in its name.

accelerate sets DistributedType.FSDP on GPUs only (accelerate/state.py:AcceleratorState.__init__). On a CPU, a run that asks
for FSDP becomes a run of DDP without a word. torch itself shards on a CPU as it does on a GPU, through gloo.
"""

from __future__ import annotations

import functools
from typing import Any


def fsdp_on_cpu() -> None:
    """Replace three functions of accelerate and torch, for the life of this process, so that FSDP works on a CPU."""
    import torch
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import FullyShardedDataParallel

    init_state = AcceleratorState.__init__

    @functools.wraps(init_state)
    def init_state_with_plugin(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        init_state(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            # These lines stand in AcceleratorState.__init__, for GPUs only.
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    init_module = FullyShardedDataParallel.__init__

    @functools.wraps(init_module)
    def init_module_on_cpu(self: Any, *args: Any, **options: Any) -> None:
        # accelerate passes a device with an index, and a CPU has no index.
        init_module(self, *args, **{**options, "device_id": torch.device("cpu")})

    state_dict_type = FullyShardedDataParallel.state_dict_type

    @functools.wraps(state_dict_type)
    def state_dict_type_without_offload(module: Any, kind: Any, config: Any = None, optim_config: Any = None) -> Any:
        # FSDP1 frees what it moves to the CPU. On a CPU it frees tensors that are in use, and the rank dies of SIGSEGV.
        for each in (config, optim_config):
            if each is not None:
                each.offload_to_cpu = False
        return state_dict_type(module, kind, config, optim_config)

    for owner, name, replacement in (
        (AcceleratorState, "__init__", init_state_with_plugin),
        (FullyShardedDataParallel, "__init__", init_module_on_cpu),
        (FullyShardedDataParallel, "state_dict_type", staticmethod(state_dict_type_without_offload)),
    ):
        setattr(owner, name, replacement)


def tensor_parallelism_on_cpu() -> None:
    """Have accelerate accept tensor parallelism on a CPU, for the life of this process.

    accelerate checks that the ranks are GPUs (accelerate/parallelism_config.py:ParallelismConfig._validate_accelerator).
    What is split is split by transformers and torch, which do it on a CPU as they do on a GPU.
    """
    from accelerate import ParallelismConfig

    check = ParallelismConfig._validate_accelerator

    @functools.wraps(check)
    def accept(self: Any, accelerator: Any) -> None:
        """Accept any ranks. `__wrapped__` is accelerate's own check."""

    ParallelismConfig._validate_accelerator = accept
