"""What upstream fills in for a field that a spec leaves out. A field at its default never changes what is judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from harness import compat
from harness.spec import RunSpec

#: Arguments that are kept although they are at upstream's default: it differs between releases, so the reference and the
#: laws, which have one default, must be told.
KEPT = ("optim", "average_tokens_across_devices")


def plain(spec: RunSpec) -> RunSpec:
    """Return the spec without the fields that are at upstream's default. It trains the same run.

    A field counts if the installed release has it, and its value is what upstream fills in: null, false or a number. An
    adapter's config may name its own peft_type, as adapter_config.json does.
    """
    adapter = dataclasses.replace(
        spec.adapter,
        config=changed_adapter(
            spec.adapter.peft_type,
            {
                name: value
                for name, value in spec.adapter.config.items()
                if (name, value) != ("peft_type", spec.adapter.peft_type)
            },
        ),
    )
    arguments = _without(spec.arguments, compat.argument_defaults(), KEPT)
    return dataclasses.replace(spec, adapter=adapter, arguments=arguments)


def changed_arguments(spec: RunSpec) -> dict[str, Any]:
    """Return the arguments of a spec that are not at upstream's default, by field name."""
    return _without(spec.arguments, compat.argument_defaults())


def changed_config(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a model's config that are not at upstream's default. kind: its class in transformers."""
    import transformers

    return _without(values, getattr(transformers, kind)().to_dict())


def changed_adapter(peft_type: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an adapter's config that are not at upstream's default."""
    defaults = compat.adapter_defaults(peft_type)
    # An empty object switches on what null leaves off: "kasa_config": {} is KaSA with all its defaults.
    switches = [name for name, value in values.items() if value == {} and name in defaults and defaults[name] is None]
    return _without(values, defaults, switches)


def _without(values: Mapping[str, Any], defaults: Mapping[str, Any], kept: Iterable[str] = ()) -> dict[str, Any]:
    return {
        name: value
        for name, value in values.items()
        if name in kept or name not in defaults or not _same(value, defaults[name])
    }


def _same(value: Any, default: Any) -> bool:
    """Return whether a value of JSON's is a default of Python's. An empty list or object stands for None and for {}."""
    if isinstance(default, (set, tuple)):
        default = sorted(default) if isinstance(default, set) else list(default)
    if value in (None, [], {}) and default in (None, [], {}, ""):
        return True
    return type(value) is type(default) and bool(value == default)
