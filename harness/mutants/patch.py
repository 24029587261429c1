"""Put a fault in place of one function of upstream."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest

#: Classes of upstream that many faults are put into.
TRAINER = "transformers.trainer:Trainer"
ACCELERATOR = "accelerate:Accelerator"
ARGUMENTS = "transformers:TrainingArguments"
HANDLER = "transformers.trainer_callback:CallbackHandler"
LLAMA = "transformers:LlamaForCausalLM"
PEFT = "peft:PeftModel"
TUNER = "peft.tuners.tuners_utils:BaseTuner"
LORA = "peft.tuners.lora.layer:LoraLayer"
LINEAR = "peft.tuners.lora.layer:Linear"
COPY = "peft.utils.other:ModulesToSaveWrapper"

#: Changes upstream, given pytest's monkeypatch.
Patch = Callable[[Any], None]


def nothing(*args: Any, **kwargs: Any) -> None:
    """Replace a function that upstream calls for its effect."""


def twice(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Replace a function that upstream calls once: call it a second time, and return the second result."""
    original(*args, **options)
    return original(*args, **options)


def replace(owner: str, name: str, fault: Callable[..., Any]) -> Patch:
    """Return a patch that calls `fault` in place of a function of upstream.

    - owner: "module", or "module:class" for a method.
    - name: the function's name.
    - fault: called with the original function first, then with its arguments. If the patch is sent to the ranks of a
      run, `fault` must be a function at the top of a module, because they import it by name.
    """
    return functools.partial(_put, owner, name, fault)


def _put(owner: str, name: str, fault: Callable[..., Any], monkeypatch: Any) -> None:
    from harness.fixtures.models import load_object

    target = load_object(owner) if ":" in owner else importlib.import_module(owner)
    original = getattr(target, name)
    function = functools.wraps(original)(lambda *args, **kwargs: fault(original, *args, **kwargs))
    bound = isinstance(inspect.getattr_static(target, name), classmethod)
    monkeypatch.setattr(target, name, staticmethod(function) if bound else function)
    forget_prototypes(monkeypatch)


def forget_prototypes(monkeypatch: Any) -> None:
    """Use no model that was built before, and keep none that is built from here on.

    Built models are kept as prototypes to copy from (`harness.fixtures.prototypes`). A copy of one that was built
    without the fault would hide the fault; a copy of one that was built with it would carry the fault on.
    """
    from harness.fixtures import models
    from harness.fixtures.prototypes import Prototypes

    monkeypatch.setattr(models, "_PROTOTYPES", Prototypes())


def in_this_process(put: Patch) -> None:
    """Apply a patch to this process, without undoing it."""
    forever = pytest.MonkeyPatch()
    put(forever)
    forget_prototypes(forever)
