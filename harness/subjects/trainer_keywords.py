"""RunSpec.trainer: the keyword arguments of the Trainer that are no TrainingArguments, made from their names.

- callbacks: a list of "NAME" or ["NAME", {options}]. A name of `CALLBACKS` or "module:class" is called with the options.
- optimizers: "module:factory", called with the model, the TrainingArguments and the options. It returns the optimizer and
  the scheduler, or None for the Trainer's own.
- model_init: true gives the Trainer a function that makes the model, in place of the model.
- the others: "module:object" is that object. With options, ["module:object", {options}], they are bound to it as keyword
  arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from harness import lacking, spec_fields
from harness.errors import UsageError
from harness.fixtures import models
from harness.reading import shown
from harness.spec import RunSpec
from harness.user_code import quoted


def _early_stopping(**options: Any) -> Any:
    from transformers import EarlyStoppingCallback

    return EarlyStoppingCallback(**options)


#: Names allowed in RunSpec.trainer["callbacks"] beside "module:class".
CALLBACKS: dict[str, Callable[..., Any]] = {"early_stopping": _early_stopping}


#: Collators that put several rows into one sequence.
PACKING = ("harness.fixtures.collators:packed", "harness.fixtures.collators:padding_free")


def check(trainer: Mapping[str, Any]) -> None:
    """Check RunSpec.trainer. Raises UsageError for an unknown key, with the nearest one, and for a value of another form."""
    spec_fields.check_trainer(trainer, "spec.trainer")


def missing(spec: RunSpec) -> str | None:
    """Return what this installation lacks for RunSpec.trainer, None if nothing."""
    collator = spec_fields.named(spec.trainer.get("data_collator"))
    if collator is None or collator[0] not in PACKING:
        return None
    # Flash attention is told where rows begin by position_ids, in every release.
    flash = str(spec.model.attn_implementation).startswith("flash")
    return None if flash else lacking.packed_masks()


def callbacks(trainer: Mapping[str, Any]) -> list[Any]:
    """Return the callbacks of RunSpec.trainer. UsageError if a name is none, or if it does not take the options."""
    made = []
    for item in trainer.get("callbacks", ()):
        name, options = _named(item)
        make = CALLBACKS[name] if name in CALLBACKS else models.load_object(name)
        where = f"spec.trainer, callbacks, {shown(name)}"
        made.append(_called(make, where, **options))
        if not hasattr(made[-1], "on_train_begin"):
            raise UsageError(f"{where}: makes {quoted(made[-1])}, which is no TrainerCallback")
    return made


def objects(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of the Trainer that need neither its model nor its arguments."""
    made = {}
    for name, value in trainer.items():
        if name not in ("callbacks", "model_init", "optimizers"):
            path, options = _named(value)
            found = models.load_object(path)
            made[name] = functools.partial(found, **options) if options else found
    return made


def optimizers(trainer: Mapping[str, Any], model: Any, arguments: Any) -> dict[str, Any]:
    """Return {"optimizers": (optimizer, scheduler)}, or an empty dict if the spec names no factory of them.

    - model: the model to train, adapters injected.
    - arguments: the TrainingArguments.
    """
    if "optimizers" not in trainer:
        return {}
    name, options = _named(trainer["optimizers"])
    where = f"spec.trainer, optimizers, {shown(name)}"
    made = _called(models.load_object(name), where, model, arguments, **options)
    if not isinstance(made, tuple) or len(made) != 2:
        raise UsageError(f"{where}: expected an optimizer and a scheduler (or None); it returned {type(made).__name__}")
    return {"optimizers": made}


def _named(value: Any) -> tuple[str, Mapping[str, Any]]:
    found = spec_fields.named(value)
    assert found is not None, "checked before"
    return found


def _called(make: Callable[..., Any], where: str, *arguments: Any, **options: Any) -> Any:
    try:
        return make(*arguments, **options)
    except TypeError as error:
        raise UsageError(f"{where}: it does not take these options ({error})") from None
