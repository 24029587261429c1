"""The upstream interface that users' code depends on: signatures, defaults and configs, compared between two stacks."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

#: Name of a call or class -> parameter or field -> its default as text ("required" if it has none).
Interface = dict[str, dict[str, str]]


def interface() -> Interface:
    """Return the interface of the installed stack."""
    import peft
    import transformers

    classes: list[Any] = [
        transformers.TrainingArguments,
        transformers.Trainer,
        peft.get_peft_model,
        peft.PeftModel.from_pretrained,
    ]
    classes += [peft.prepare_model_for_kbit_training, transformers.PreTrainedModel.add_adapter]
    classes += [transformers.PreTrainedModel.load_adapter]
    configs = sorted(
        name for name in vars(peft) if name.endswith("Config") and dataclasses.is_dataclass(getattr(peft, name))
    )
    classes += [getattr(peft, name) for name in configs]
    found = {called.__qualname__: _defaults(called) for called in classes}
    found["TrainingArguments, as made"] = _made(
        transformers.TrainingArguments(output_dir="output", use_cpu=True).to_dict()
    )
    found["LoraConfig, as made"] = _made(peft.LoraConfig().to_dict())
    return found


def _defaults(called: Any) -> dict[str, str]:
    if dataclasses.is_dataclass(called):
        return {field.name: _field(field) for field in dataclasses.fields(called) if field.init}
    return {
        name: "required" if given.default is given.empty else _text(given.default)
        for name, given in inspect.signature(called).parameters.items()
        if given.kind not in (given.VAR_POSITIONAL, given.VAR_KEYWORD) and name not in ("self", "cls")
    }


def _field(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return _text(field.default)
    if field.default_factory is not dataclasses.MISSING:
        try:
            return _text(field.default_factory())
        except Exception as error:
            return f"made by a factory ({type(error).__name__})"
    return "required"


def _made(values: dict[str, Any]) -> dict[str, str]:
    """Return the values that an instance has after __post_init__, without those that name a time, a place or a release."""
    return {
        name: _text(value) for name, value in values.items() if name not in ("logging_dir", "run_name", "peft_version")
    }


def _text(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:200]


@dataclasses.dataclass(frozen=True)
class Change:
    """One difference.

    - where: for example "LoraConfig.use_dora".
    - before, after: the default in each stack, None if the name does not exist there.
    """

    where: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before is None:
            return f"is new ({self.after})"
        if self.after is None:
            return f"is gone (was {self.before})"
        return f"{self.before} became {self.after}"


def changes(before: Interface, after: Interface) -> list[Change]:
    """Return the differences: changed defaults first, then names that are gone, then new names."""
    found = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            found.append(Change(name, None if old is None else "there", None if new is None else "there"))
            continue
        for field in sorted({*old, *new}):
            if old.get(field) != new.get(field):
                found.append(Change(f"{name}.{field}", old.get(field), new.get(field)))
    return sorted(found, key=lambda change: (change.before is None, change.after is None))
