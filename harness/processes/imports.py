"""Prepare a process that trains: environment variables, upstream's imports, threads, preloads and patches."""

from __future__ import annotations

import logging
import os
import sys

from harness import compat, patches
from harness.environment import hide_left_out, version
from harness.errors import UsageError
from harness.paths import cache_directory, search_user_modules
from harness.processes.guard import is_guarded
from harness.user_code import guarded, imported

#: Environment variables that are set before upstream is imported, unless the user has set them.
ENVIRONMENT = {
    # No case may depend on a network.
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # transformers need not look for TensorFlow and Flax.
    "USE_TF": "0",
    "USE_FLAX": "0",
    # Idle OpenMP threads sleep instead of spinning. Spinning made a step of SmolLM2-135M take 30 s instead of 2 s on two
    # cores that other work used, too. Results do not depend on it, and with one thread it does nothing.
    "OMP_WAIT_POLICY": "PASSIVE",
}

_imported = False


def preload(modules: list[str]) -> None:
    """Import modules before upstream is used, for users who patch upstream. UsageError names one that fails."""
    for module in modules:
        imported(module, f"--preload {module}:")


def set_environment() -> None:
    """Set the variables of ENVIRONMENT, unless the user has. Upstream reads them when it is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def import_upstream(preloads: list[str] | None = None, threads: int = 1, patched: bool = True) -> None:
    """Import the user's preloads and upstream, set torch's threads, and apply the harness's patches.

    Upstream is imported once in a process; preloads and threads are done at each call.

    - preloads: modules to import before upstream is used.
    - threads: torch's intra-op threads; 0 leaves them as they are. At hidden size 64 more than one thread is slower.
    - patched: False turns `harness.patches` off for the life of the process.

    Raises UsageError if one of them, or upstream itself, cannot be imported, and if the stack is too old to be judged.
    """
    global _imported
    compat.require_supported()
    hide_left_out()
    if not patched:
        patches.turn_off()
    set_environment()
    if is_guarded():
        # Its usual place is TMPDIR, which ends with the command. Everything would be compiled anew each time.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_directory() / "inductor"))
    search_user_modules()
    with guarded("torch cannot be imported"):
        import torch

    if threads:
        torch.set_num_threads(threads)
    preload(preloads or [])
    if _imported:
        return
    require_proc()
    with guarded("upstream cannot be imported"):
        _import_the_rest()
    patches.apply()
    _imported = True


def require_proc(proc: str = "/proc") -> None:
    """Raise UsageError if DeepSpeed is installed, and /proc, which it reads at its import, is missing.

    accelerate imports DeepSpeed in every run, so every run would end in an error, and every clause would seem to fail.
    """
    if sys.platform == "linux" and version("deepspeed") is not None and not os.path.exists(f"{proc}/self/stat"):
        raise UsageError(
            f"{proc} is not mounted, and the installed DeepSpeed reads it; mount it, or uninstall deepspeed"
        )


def _import_the_rest() -> None:
    # bitsandbytes warns at its import of an optional kernel that is not needed here.
    bitsandbytes = logging.getLogger("bitsandbytes")
    level = bitsandbytes.level
    bitsandbytes.setLevel(logging.ERROR)
    import accelerate  # noqa: F401
    import jinja2  # noqa: F401
    import peft  # noqa: F401
    import transformers

    bitsandbytes.setLevel(level)
    # transformers imports these when they are first named.
    _ = transformers.Trainer, transformers.TrainingArguments, transformers.LlamaForCausalLM
