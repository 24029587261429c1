"""The changes that the harness makes in upstream so that runs take less time: one row each, in `PATCHES`.

1. `apply` puts the rows in place. `harness.processes.imports.import_upstream` calls it in each process that trains.
2. `names` lists the rows for the header of `pytest suites/` and for `environment.patches` in the JSON report.
3. `turn_off` keeps them off in a process and in those that it starts (`--unpatched`), `off` for the length of a block.

No row changes what a run computes or writes. What is timed or counted is never patched: processes that time steps
(harness/throughput/worker.py) run unpatched, and so do the counted steps (harness/throughput/counters.py) and the timed
saves (suites/test_perf.py).

Other changes are not for speed, and `--unpatched` leaves them on, because a verdict needs them:

- harness/processes/shims.py lets accelerate use FSDP on a CPU. Each case that needs it is named "/shimmed".
- harness/subjects/hf_trainer.py:recorded_warnings forgets which warnings transformers has given once, and collects the
  warnings of each run. The same file wraps `clip_grad_norm_` of one accelerator, to copy gradients before clipping.
- harness/processes/cuda_free_fork.py answers questions about GPUs through NVML while upstream is imported.
- harness/processes/imports.py sets environment variables (`ENVIRONMENT`), unless the user has set them.
- fixtures/hub.py stands in for the hub, in the few cases that are about it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

#: Undoes one change.
Undo = Callable[[], None]


@dataclass(frozen=True)
class Patch:
    """One change of upstream.

    - name: what reports call it.
    - replaces: what is changed, as module:attribute.
    - reason: what the change saves, with the measured figure. All were measured on two cores on 2026-11-28.
    - module: upstream's module. The change waits until the process has imported it.
    - apply: makes the change, and returns what undoes it.
    - device: the device that it is for, empty for every device.
    """

    name: str
    replaces: str
    reason: str
    module: str
    apply: Callable[[], Undo]
    device: str = ""


def _replace(owner: Any, attribute: str, replacement: Any) -> Undo:
    """Set an attribute, and return what sets it back. An attribute that this release does not have is left out."""
    original = getattr(owner, attribute, None)
    if original is None:
        return lambda: None
    setattr(owner, attribute, replacement(original))
    return lambda: setattr(owner, attribute, original)


def _cache_templates() -> Undo:
    from jinja2 import Environment

    compiled: dict[Any, Any] = {}

    def cached(compile: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(compile)
        def compile_once(self: Environment, source: Any, *args: Any, **kwargs: Any) -> Any:
            # jinja2 shares the environment of templates that are made from a text alone, as the model card's is.
            if not self.shared or not isinstance(source, str):
                return compile(self, source, *args, **kwargs)
            key = (self, source, args, tuple(sorted(kwargs.items())))
            if key not in compiled:
                compiled[key] = compile(self, source, *args, **kwargs)
            return compiled[key]

        return compile_once

    return _replace(Environment, "compile", cached)


def _cache_package_lookups() -> Undo:
    return _replace(sys.modules["accelerate.utils.imports"], "_is_package_available", functools.cache)


def _skip_seeds_of_absent_devices() -> Undo:
    import torch

    devices: list[Any] = [getattr(torch, name, None) for name in ("cuda", "xpu", "mtia")]
    absent = [device for device in devices if device is not None and not device.is_available()]
    undo = [_replace(device, "manual_seed_all", lambda original: lambda seed: None) for device in absent]

    def undo_all() -> None:
        for each in undo:
            each()

    return undo_all


def _hide_progress_bars() -> Undo:
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        return lambda: None
    logging.disable_progress_bar()
    return logging.enable_progress_bar


def _freeze_garbage_collector() -> Undo:
    gc.collect()
    gc.freeze()
    return gc.unfreeze


def _skip_shared_memory_op() -> Undo:
    # `deepspeed.comm.torch` as an attribute of its package is torch itself.
    return _replace(sys.modules["deepspeed.comm.torch"], "build_shm_op", lambda original: lambda: None)


#: The patch that replaces no call.
FROZEN = "frozen-garbage-collector"

PATCHES = (
    Patch(
        "model-card-templates",
        "jinja2:Environment.compile",
        "The model card of each checkpoint is made from the same template, which is compiled each time (huggingface_hub, "
        "repocard.py:ModelCard.from_template). A checkpoint takes 6.7 ms with the compiled template cached, 20.1 without.",
        "jinja2",
        _cache_templates,
    ),
    Patch(
        "package-look-ups",
        "accelerate.utils.imports:_is_package_available",
        "accelerate looks up on disk whether a package is installed, 24 times in a run of 10 steps and twice of them at each "
        "step (accelerate/optimizer.py: is_lomo_available). A run takes 112 ms with the answers cached, 117 without; "
        "a step is 2.6 % slower without.",
        "accelerate.utils.imports",
        _cache_package_lookups,
    ),
    Patch(
        "seeds-of-absent-devices",
        "torch.cuda, torch.xpu, torch.mtia:manual_seed_all",
        "torch.manual_seed notes the seed for devices that are not there, with the Python stack: 37 microseconds or more "
        "each, depending on the depth of the stack, and 9 or 10 times in a run.",
        "torch",
        _skip_seeds_of_absent_devices,
    ),
    Patch(
        "progress-bars",
        "transformers.utils.logging:disable_progress_bar",
        "Bars for the loading of weights would be drawn in the output of each case.",
        "transformers",
        _hide_progress_bars,
    ),
    Patch(
        FROZEN,
        "gc:freeze",
        "accelerate calls gc.collect() at the start of each train(). That takes less than 1 ms with upstream's objects "
        "frozen, 250 ms without: a run of 10 steps takes 112 ms instead of 363.",
        "gc",
        _freeze_garbage_collector,
    ),
    Patch(
        "no-deepspeed-shared-memory",
        "deepspeed.comm.torch:build_shm_op",
        "On a CPU DeepSpeed compiles an extension, which takes a minute and needs a compiler. Only inference_all_reduce "
        "uses it (deepspeed/comm/torch.py:TorchBackend); training goes through torch.distributed, as on GPUs.",
        "deepspeed.comm.torch",
        _skip_shared_memory_op,
        device="cpu",
    ),
)

#: The environment variable that keeps patches off, in this process and in those that it starts.
UNPATCHED = "PEFT_HARNESS_UNPATCHED"

#: What undoes each patch that is in place, by its name.
_undo: dict[str, Undo] = {}


def enabled() -> bool:
    """Return whether this process applies patches: true unless `turn_off` or `off` says otherwise."""
    return UNPATCHED not in os.environ


def active() -> list[str]:
    """Return the names of the patches that are in place in this process."""
    return [patch.name for patch in PATCHES if patch.name in _undo]


def names(device: str = "cpu") -> list[str]:
    """Return the names of the patches that processes which train on a device apply, as soon as they import upstream."""
    return [
        patch.name
        for patch in PATCHES
        if enabled()
        and patch.device in ("", device)
        and (patch.module == "gc" or importlib.util.find_spec(patch.module.partition(".")[0]))
    ]


def apply() -> None:
    """Put each patch in place whose module this process has imported, unless patches are turned off."""
    for patch in PATCHES:
        if enabled() and patch.name not in _undo and patch.module in sys.modules:
            _undo[patch.name] = patch.apply()


def freeze() -> None:
    """Keep the objects that exist by now out of the garbage collector, unless patches are turned off."""
    if enabled():
        gc.collect()
        gc.freeze()


def turn_off() -> None:
    """Take every patch off, and keep patches off in this process and in those that it starts from now on."""
    os.environ[UNPATCHED] = "1"
    while _undo:
        _undo.popitem()[1]()


@contextlib.contextmanager
def off(frozen: bool = False) -> Iterator[None]:
    """Take every patch off within the block, also in processes that it starts, and put back those that were on.

    - frozen: leave frozen what is frozen, which replaces no call of upstream. Otherwise each gc.collect() in the block,
      and the end of the block, take 250 ms.
    """
    were_enabled, were_on = enabled(), active()
    unfreeze = _undo.pop(FROZEN, None) if frozen else None
    turn_off()
    try:
        yield
    finally:
        if were_enabled:
            os.environ.pop(UNPATCHED, None)
        if unfreeze is not None:
            _undo[FROZEN] = unfreeze
        if were_on:
            apply()
