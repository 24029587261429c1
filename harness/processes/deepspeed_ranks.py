"""Imported where ranks of DeepSpeed are forked from, and by each: what all of them would import (half a second), and that
ranks on a CPU do without the extension that DeepSpeed compiles for them (a minute, and a compiler).

It sums over ranks on one machine in `inference_all_reduce` alone; in training they talk by torch.distributed, as on GPUs.
deepspeed/comm/torch.py:TorchBackend.
"""

import contextlib
import importlib

#: What DeepSpeed imports when its engine is made; not each release has each.
MODULES = (
    "setuptools",
    "torch.utils.cpp_extension",
    "deepspeed.module_inject.auto_ep_config",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
)

for module in MODULES:
    with contextlib.suppress(Exception):
        importlib.import_module(module)

# What cannot be had here is told by the rank that needs it.
with contextlib.suppress(ImportError):
    # As an attribute of the package the name is torch's own.
    backend = importlib.import_module("deepspeed.comm.torch")
    vars(backend)["build_shm_op"] = lambda: None
