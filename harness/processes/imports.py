"""Make a process ready to train many small runs fast, and the same way each time."""

from __future__ import annotations

import functools
import gc
import importlib
import logging
import os
from typing import Any

from harness.errors import UsageError
from harness.paths import search_user_modules

#: Set before upstream is imported: no hub, no tokenizer threads, no TensorFlow or Flax probing.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "USE_TF": "0",
    "USE_FLAX": "0",
    # Threads of torch that spin while they wait make a step of 2 s one of 30 s where two cores are shared with other
    # work (SmolLM2-135M, load 5); asleep they cost little. It changes no result, and nothing where there is one thread.
    "OMP_WAIT_POLICY": "PASSIVE",
}

_warmed = False


def preload(modules: list[str]) -> None:
    """Import modules before upstream is used, for users who patch upstream. UsageError names one that fails."""
    search_user_modules()
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(f"--preload {module}: cannot be imported ({error})") from None


def import_upstream(preloads: list[str] | None = None, threads: int = 1) -> None:
    """Import upstream once and freeze it out of the garbage collector.

    accelerate calls gc.collect() at the start of every train(): 300 ms over upstream's three million objects, 0.3 ms
    once they are frozen. threads: torch's intra-op threads, 0 leaves them as they are; at hidden size 64 more than
    one only costs.
    """
    global _warmed
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    search_user_modules()
    import torch

    if threads:
        torch.set_num_threads(threads)
    preload(preloads or [])
    if _warmed:
        return
    # bitsandbytes warns at import of an optional kernel that it does not need here.
    quiet = logging.getLogger("bitsandbytes")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    import accelerate  # noqa: F401
    import peft  # noqa: F401
    import transformers

    quiet.setLevel(level)
    transformers.utils.logging.disable_progress_bar()

    _compile_templates_once()
    _look_for_packages_once()
    _seed_what_there_is()
    _ = transformers.Trainer, transformers.TrainingArguments, transformers.LlamaForCausalLM
    gc.collect()
    gc.freeze()
    _warmed = True


def _look_for_packages_once() -> None:
    """Let accelerate keep whether a package is installed: it reads the package's metadata at each save, 5 % of a run."""
    from accelerate.utils import imports

    if hasattr(imports, "_is_package_available"):
        imports._is_package_available = functools.cache(imports._is_package_available)


def _seed_what_there_is() -> None:
    """Without a GPU, keep no seeds for one: torch.manual_seed() notes each with the stack it came from, 3 % of a run."""
    import torch

    for name in ("cuda", "xpu", "mtia"):
        device: Any = getattr(torch, name, None)
        if device is not None and not device.is_available():
            device.manual_seed_all = lambda seed: None


def _compile_templates_once() -> None:
    """Let jinja2 keep what it compiled of a text.

    Each save of an adapter writes a model card, and compiles its template anew: two thirds of a save's time. The text
    that comes of it is the same; templates with an environment of their own are compiled as ever.
    """
    from jinja2 import Environment

    compiled: dict[Any, Any] = {}
    compile_anew = Environment.compile

    @functools.wraps(compile_anew)
    def once(self: Environment, source: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.shared or not isinstance(source, str):
            return compile_anew(self, source, *args, **kwargs)
        key = (self, source, args, tuple(sorted(kwargs.items())))
        if key not in compiled:
            compiled[key] = compile_anew(self, source, *args, **kwargs)
        return compiled[key]

    Environment.compile = once  # type: ignore[method-assign]
