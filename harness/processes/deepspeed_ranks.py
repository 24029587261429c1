"""Import what each rank of DeepSpeed on a CPU needs, and apply the patch that spares them a compiler.

The fork server imports this module, so that its ranks share the imports (half a second each). A rank that torchrun started
imports it itself.
"""

import contextlib
import importlib

from harness import patches

#: What DeepSpeed imports when its engine is made. Not every release has each of them.
MODULES = (
    "setuptools",
    "torch.utils.cpp_extension",
    "deepspeed.module_inject.auto_ep_config",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
)

for module in (*MODULES, "deepspeed.comm.torch"):
    # If a rank needs a module that cannot be imported, the rank reports the error.
    with contextlib.suppress(Exception):
        importlib.import_module(module)

patches.apply()
