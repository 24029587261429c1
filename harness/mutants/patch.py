"""Putting a fault in place of one function of upstream."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest

#: Owners that many faults are put into.
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

Fault = Callable[[Any], None]


def nothing(*args: Any, **kwargs: Any) -> None:
    """In place of a function that upstream calls for its effect."""


def twice(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """In place of a function that upstream calls once."""
    original(*args, **options)
    return original(*args, **options)


def replace(owner: str, name: str, fault: Callable[..., Any]) -> Fault:
    """Puts `fault` in place of a function, given pytest's monkeypatch.

    owner: "module", or "module:class" for a method. fault: called with the original first, then with its arguments; one
    for the ranks of a run is a function of a module, by which name they find it.
    """

    put: Any = functools.partial(_put, owner, name, fault)
    put.__name__ = f"replace_{name}"
    where = f"{owner.partition(':')[2] or owner}.{name}"
    how = "" if "<" in fault.__name__ else f": {fault.__name__.replace('_', ' ').strip()}"
    put.fault = f"{where} does nothing" if fault is nothing else f"{where} replaced{how}"
    return put


def _put(owner: str, name: str, fault: Callable[..., Any], monkeypatch: Any) -> None:
    from harness.fixtures.models import load_object

    target = load_object(owner) if ":" in owner else importlib.import_module(owner)
    original = getattr(target, name)
    function = functools.wraps(original)(lambda *args, **kwargs: fault(original, *args, **kwargs))
    bound = isinstance(inspect.getattr_static(target, name), classmethod)
    monkeypatch.setattr(target, name, staticmethod(function) if bound else function)
    build_anew(monkeypatch)


def build_anew(monkeypatch: Any) -> None:
    """Under a fault no model is a copy of one that was built without it, nor afterwards of one that was built with it."""
    from harness.fixtures import models
    from harness.fixtures.prototypes import Prototypes

    monkeypatch.setattr(models, "_PROTOTYPES", Prototypes())


def in_this_process(put: Fault) -> None:
    """Put a fault into this process for good."""
    forever = pytest.MonkeyPatch()
    put(forever)
    build_anew(forever)
