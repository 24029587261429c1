"""What a Trainer was asked for, as a RunSpec, so that the laws of the suites can be applied to the user's own run."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from harness.spec import ADD, GET, AdapterSpec, DataSpec, LaunchSpec, ModelSpec, ResumeSpec, RunSpec
from harness.watch.seen import Seen


def spec_of(seen: Seen) -> tuple[RunSpec | None, str]:
    """Return the RunSpec of a Trainer's run, and "" or why there is none.

    Its base model is not the user's: only laws that do not build it may be given this spec.
    """
    if seen.args is None:
        return None, "it is a loop without TrainingArguments"
    rows, iterable = _rows(seen)
    resume = ResumeSpec(checkpoint=seen.resumed_step) if seen.resumed else None
    return RunSpec(
        model=ModelSpec(dtype=_dtype(seen)),
        adapter=_adapter(seen),
        data=DataSpec(rows=rows, iterable=iterable),
        arguments=_arguments(seen.args),
        launch=LaunchSpec(
            device=str(getattr(seen.args.device, "type", "cpu")),
            ranks=seen.world,
            strategy="ddp" if seen.world > 1 else "single",
        ),
        resume=resume,
    ), ""


def plain(value: Any) -> Any:
    """Return a value as JSON has it: enums by value, sets and tuples as lists. What JSON does not have becomes a text."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def fields_of(config: Any) -> dict[str, Any]:
    """Return the fields of an adapter's config as they are in memory, without asking its to_dict."""
    return {
        name: plain(getattr(config, name, None))
        for name in getattr(config, "__dataclass_fields__", {})
        if name not in ("runtime_config",)
    }


def _rows(seen: Seen) -> tuple[int, bool]:
    dataset = getattr(seen.loader, "dataset", None)
    try:
        return len(dataset), False  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return 1, True


def _arguments(args: Any) -> dict[str, Any]:
    values = {name: plain(value) for name, value in args.to_dict().items() if not name.endswith("_token")}
    config: Any = getattr(args, "accelerator_config", None)
    if hasattr(config, "to_dict"):
        values["accelerator_config"] = plain(config.to_dict())
    # Releases before 5.0 have the share of the warm-up in an argument of its own.
    if not values.get("warmup_steps") and values.get("warmup_ratio"):
        values["warmup_steps"] = values["warmup_ratio"]
    return values


def _adapter(seen: Seen) -> AdapterSpec:
    if not seen.adapters:
        return AdapterSpec(config={})
    route = GET if hasattr(seen.model, "get_base_model") else ADD
    return AdapterSpec(
        route=route,
        peft_type=seen.peft_type,
        name=seen.adapters[0],
        config=fields_of(seen.config),
        others={name: {} for name in seen.peft if name not in seen.adapters[:1]},
    )


def _dtype(seen: Seen) -> str:
    kinds = [str(p.dtype).removeprefix("torch.") for p in seen.model.parameters() if not p.requires_grad]
    floats = [kind for kind in kinds if "float" in kind]
    return max(set(floats), key=floats.count) if floats else "float32"
