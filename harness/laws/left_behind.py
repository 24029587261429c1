"""What evaluate(), predict() and a train() that was interrupted leave behind in the model."""

from __future__ import annotations

from typing import Any

from harness.laws.equal import differences, equal_runs
from harness.laws.verbs import modes
from harness.trace import Tensors, Trace
from harness.verdict import Verdict, both, verdict


def state_of(model: Any) -> dict[str, Any]:
    """Return what a call must leave as it is: requires_grad, hooks of modules, active adapters, what is merged or off."""
    state: dict[str, Any] = {name: value for name, value in modes(model).items() if name.startswith("requires_grad")}
    for name, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        state[f"hooks of {name or 'the model'}"] = [len(held) for held in hooks]
        for field in ("active_adapters", "merged_adapters", "disable_adapters"):
            if hasattr(module, "base_layer"):
                state[f"{field} of {name}"] = getattr(module, field)
    return state


def one_mode(model: Any, training: bool, when: str) -> list[str]:
    """Return a sentence if some module is not in the mode that all must be in."""
    odd = [name or "the model" for name, module in model.named_modules() if module.training != training]
    mode = "training" if training else "evaluation"
    return [f"{when} {len(odd)} modules are not in {mode} mode, {odd[0]} first"] if odd else []


def changed(model: Any, before: dict[str, Any], when: str) -> list[str]:
    """Return what of `state_of` is not what it was."""
    after = state_of(model)
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{when} {name}: {after.get(name)}, expected {before.get(name)}" for name in names[:3]]


def only_evaluated(model: Any, before: dict[str, Any], tensors: Tensors, when: str) -> list[str]:
    """Return what evaluate() or predict() has changed beside the mode, which must be evaluation's.

    - before, tensors: what `state_of` and state_dict() had before the call.
    """
    findings = one_mode(model, False, when) + changed(model, before, when)
    return findings + differences(dict(model.state_dict()), tensors, 0.0, when)[:1]


def trains_as_new(again: Trace, fresh: Trace, left: list[str]) -> Verdict:
    """Check that a model whose training was interrupted trains as a new one with its values does.

    - again: the run of the model that was interrupted.
    - fresh: the same run of a new model with those values.
    - left: what the interruption left behind.
    """
    return both(verdict("an interrupted train() leaves nothing behind", left), equal_runs(again, fresh))
