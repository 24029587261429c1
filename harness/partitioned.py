"""Imported once where ranks of DeepSpeed are forked from: what each of them would import, and the extension through which
they talk on a CPU (half a second of each rank, and for the first the compiler's minute).

What cannot be had here is told by the rank that needs it.
"""

import contextlib
import importlib
import io

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

# It prints that it was built.
with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
    from deepspeed.comm.torch import build_shm_op

    build_shm_op()
