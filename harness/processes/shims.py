"""What it takes to run FSDP without a GPU. A run under these shims is labelled "shimmed" wherever it is named.

accelerate sets DistributedType.FSDP for GPUs only (accelerate/state.py, AcceleratorState.__init__): on a CPU a run that
asks for FSDP is silently one of DDP. torch itself shards on a CPU as on a GPU, through gloo.
"""

from __future__ import annotations

import functools
from typing import Any


def fsdp_on_cpu() -> None:
    """Let accelerate take FSDP for what it is on a CPU too. For the life of this process."""
    import torch
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import FullyShardedDataParallel

    start = AcceleratorState.__init__

    @functools.wraps(start)
    def with_plugin(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        start(self, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    wrap = FullyShardedDataParallel.__init__

    @functools.wraps(wrap)
    def on_plain_cpu(self: Any, *args: Any, **options: Any) -> None:
        # FSDP1 is given its device with an index, which a CPU has not.
        wrap(self, *args, **{**options, "device_id": torch.device("cpu")})

    state_dict_type = FullyShardedDataParallel.state_dict_type

    @functools.wraps(state_dict_type)
    def where_it_is(module: Any, kind: Any, config: Any = None, optim_config: Any = None) -> Any:
        # Moving what is on a CPU to a CPU frees it under FSDP1's hands: the rank dies of SIGSEGV.
        for one in (config, optim_config):
            if one is not None:
                one.offload_to_cpu = False
        return state_dict_type(module, kind, config, optim_config)

    for owner, name, replaced in (
        (AcceleratorState, "__init__", with_plugin),
        (FullyShardedDataParallel, "__init__", on_plain_cpu),
        (FullyShardedDataParallel, "state_dict_type", staticmethod(where_it_is)),
    ):
        setattr(owner, name, replaced)
