"""What is trained: which tensors require gradients, whether they move, and whether anything else moves them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch

from harness.reference.lora import is_linear, is_packed
from harness.tensors import names
from harness.watch.as_spec import fields_of
from harness.watch.check import Check

#: Types whose adapters have tensors that are not trained, or are trained in turns. Which ones is not judged.
PARTLY_FROZEN = ("VERA", "PVERA", "RANDLORA", "ADALORA", "VBLORA", "XLORA", "FOURIERFT", "SHIRA", "C3A", "PSOFT", "OSF")

#: Fields of a config that change which modules are adapted, besides target_modules.
_OTHER_RULES = ("exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters", "layer_replication")


class TrainedTensors(Check):
    id = "trained-tensors"

    def why_not(self) -> str | None:
        if not self.seen.peft:
            return "the model has no adapter"
        return None if self.seen.adapters else "no adapter is active"

    def begin(self) -> None:
        self._trained = set(self.seen.trained)
        self.judge(self._besides() + self._missing() + self._targets())

    def _besides(self) -> list[str]:
        """Return trained tensors that belong to no active adapter."""
        seen, found = self.seen, []
        biased = getattr(seen.config, "bias", "none") or "none"
        for raw, parameter in seen.model.named_parameters():
            if not parameter.requires_grad or self._is_of_active(raw):
                continue
            if biased != "none" and raw.endswith("bias"):
                continue
            kind = "of another adapter" if names.is_adapter(raw) else "of the base"
            found.append(f"{seen.names[id(parameter)]}, {kind}, requires gradients")
        return found

    def _is_of_active(self, raw: str) -> bool:
        if not names.is_adapter(raw):
            return False
        parts = raw.split(".")
        named = [part for part in parts if part in self.seen.peft]
        return not named or any(name in self.seen.adapters for name in named)

    def _missing(self) -> list[str]:
        seen = self.seen
        if seen.peft_type in PARTLY_FROZEN:
            self.skip(f"which tensors of {seen.peft_type} are trained is not modelled")
            return []
        if getattr(seen.config, "inference_mode", False):
            return (
                [f"adapter {seen.adapters[0]!r} is set up for inference, and is not trained"]
                if not seen.trained
                else []
            )
        return [
            f"{seen.names[id(p)]} of the active adapter does not require gradients"
            for raw, p in seen.model.named_parameters()
            if names.is_adapter(raw)
            and any(f".{name}" in raw for name in seen.adapters)
            and self._is_of_active(raw)
            and p.is_floating_point()
            and not p.requires_grad
            and ".original_module." not in raw
        ]

    def _targets(self) -> list[str]:
        """Return the linear layers that are adapted although target_modules does not name them, or the other way round."""
        seen, config = self.seen, self.seen.config
        targets = getattr(config, "target_modules", None)
        if len(seen.peft) > 1 or seen.peft_type != "LORA" or not targets:
            return []
        if any(getattr(config, rule, None) for rule in _OTHER_RULES):
            self.skip(
                "which modules are adapted is not modelled with exclude_modules, layers_to_transform and the like"
            )
            return []
        adapted, plain = self._layers()
        head = (
            _path_of(seen.base, seen.base.get_output_embeddings())
            if hasattr(seen.base, "get_output_embeddings")
            else ""
        )
        copied = tuple(getattr(config, "modules_to_save", None) or ())

        def is_named(path: str, linear: bool) -> bool:
            if targets == "all-linear":
                # The head of a task is no target, either, which transformers' classes do not say.
                return linear and path != head and path.rpartition(".")[2] not in ("score", "classifier", "lm_head")
            if isinstance(targets, str):
                return bool(re.fullmatch(targets, path))
            return path in targets or path.endswith(tuple(f".{target}" for target in targets))

        found = [f"{p} is adapted, which target_modules does not name" for p in adapted if not is_named(p, True)]
        found += [
            f"{p} is not adapted, although target_modules names it"
            for p in plain
            if is_named(p, True) and not any(part in copied for part in p.split("."))
        ]
        return found[:5]

    def _layers(self) -> tuple[list[str], list[str]]:
        """Return the paths of adapted layers, and of linear layers that are not."""
        adapted: list[str] = []
        plain: list[str] = []
        for path, module in self.seen.base.named_modules():
            if hasattr(module, "base_layer") and hasattr(module, "lora_A"):
                adapted.append(path)
            elif (is_linear(module) or is_packed(module)) and not names.is_adapter(path) and "base_layer" not in path:
                plain.append(path)
        return adapted, plain

    def before_update(self) -> None:
        if self.seen.sampled:
            self._same_as_before()

    def end(self) -> None:
        self._same_as_before()

    def _same_as_before(self) -> None:
        seen = self.seen
        now = {seen.names.get(id(p), "?") for p in seen.model.parameters() if p.requires_grad}
        found = [f"{name} requires gradients since training began" for name in sorted(now - self._trained)]
        found += [f"{name} no longer requires gradients" for name in sorted(self._trained - now)]
        self.judge(found)
        self._trained = now


def _path_of(model: Any, module: Any) -> str:
    return next((path for path, each in model.named_modules() if each is module and module is not None), "")


class Values:
    """The values of the trained tensors at one moment, on their device."""

    def __init__(self, tensors: dict[str, Any]):
        self._values = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def changed(self, tensors: dict[str, Any]) -> list[str]:
        """Return the names of the tensors that have other values now."""
        common = [name for name in self._values if name in tensors and tensors[name].shape == self._values[name].shape]
        if not common:
            return []
        now = [tensors[name].detach() for name in common]
        before = [self._values[name] for name in common]
        # One kernel for many tensors, and one transfer. NaN minus NaN is NaN, which is looked at again.
        gaps = [gap.to(now[0].device) for gap in torch._foreach_norm(torch._foreach_sub(now, before), float("inf"))]
        largest = torch.stack([gap.float() for gap in gaps]).tolist()
        return [
            name
            for name, gap, one, other in zip(common, largest, now, before, strict=True)
            if gap > 0 or (gap != gap and not torch.equal(one.nan_to_num(), other.nan_to_num()))
        ]


class Moves(Check):
    """Judges that each update moves the adapter, and that nothing else does."""

    id = "adapter-moves"

    def why_not(self) -> str | None:
        return self.seen.sharded

    def begin(self) -> None:
        seen = self.seen
        self._first = Values(seen.trained)
        self._after: Values | None = None
        self._norms: Any = None
        self._still: set[str] = set(seen.trained)
        #: How often an update of Adam's had to move each tensor.
        self._pushed: Counter[str] = Counter()
        self._updates = 0
        self._told = False
        self._configs = {name: fields_of(config) for name, config in seen.peft.items()}
        self._others_may = [f"callback {name} may change it" for name in seen.foreign]
        if seen.peft_type == "ADALORA":
            self._others_may.append("AdaLoRA changes its ranks between steps")

    def step_begin(self) -> None:
        seen = self.seen
        if not seen.sampled:
            self._after = None
            return
        if seen.trainer is not None:  # a loop may clear gradients between the forward and the backward pass
            left = [name for name, p in seen.trained.items() if p.grad is not None]
            self._between([f"{name} still holds a gradient when a step begins" for name in left])
        if self._after is not None:
            self._between(
                [f"{name} has changed since the last optimizer step" for name in self._after.changed(seen.trained)]
            )
        self._before_step = Values(seen.trained)

    def _between(self, findings: list[str]) -> None:
        if self._others_may:
            self.skip(self._others_may[0], "nothing-else-moves")
        else:
            self.judge(findings, "nothing-else-moves")

    def backward(self, batch: Any) -> None:
        gradients = [p.grad for p in self.seen.trained.values() if p.grad is not None]
        batch.norms = norms_of(gradients) if gradients and self.seen.world == 1 else None
        self._norms = batch.norms

    def before_forward(self, args: Any, inputs: Any) -> None:
        if not (self.seen.sampled and self._norms is not None and torch.is_grad_enabled()):
            return
        gradients = [p.grad for p in self.seen.trained.values() if p.grad is not None]
        if len(gradients) == len(self._norms) and self.seen.model.training:
            same = bool(torch.equal(norms_of(gradients).nan_to_num(), self._norms.nan_to_num()))
            self.judge(
                [] if same else ["gradients have changed between two backward passes of a window"], "nothing-else-moves"
            )
        self._norms = None

    def before_update(self) -> None:
        seen = self.seen
        if not seen.sampled:
            return
        self._norms = None
        moved = self._before_step.changed(seen.trained)
        self._between([f"{name} has changed before the optimizer step" for name in moved])
        self._before = Values(seen.trained)
        self._pushed.update(name for name, p in seen.trained.items() if p.grad is not None and self._must_move(name, p))
        self._rates = {
            id(p): float(group["lr"]) for group in seen.optimizer.param_groups for p in group["params"]
        } if seen.optimizer is not None else {}  # fmt: skip

    def _must_move(self, name: str, parameter: Any) -> bool:
        """Return whether an update must change a tensor that has not moved: Adam's first ones move it by the rate."""
        seen = self.seen
        if name not in self._still or not isinstance(seen.optimizer, (torch.optim.AdamW, torch.optim.Adam)):
            return False
        rate = max(float(group["lr"]) for group in seen.optimizer.param_groups)
        largest = float(parameter.detach().abs().max()) if parameter.numel() else 0.0
        return rate > 16 * torch.finfo(parameter.dtype).eps * largest and bool(parameter.grad.any())

    def after_update(self) -> None:
        seen = self.seen
        if not seen.sampled or not hasattr(self, "_before"):
            return
        moved = self._before.changed(seen.trained)
        self._still -= set(moved)
        if any(rate > 0 for rate in self._rates.values()):
            self._updates += 1
            if not moved and seen.trained and not _was_skipped(seen):
                self.judge(["the optimizer step changed no tensor"])
        if self._updates == 3 and not self._told:
            self._judge_still()
        self._after = Values(seen.trained)

    def end(self) -> None:
        seen = self.seen
        for name, before in self._configs.items():
            now = fields_of(seen.peft[name]) if name in seen.peft else None
            self._config_kept(name, before, now)
        if self._after is not None and not seen.argument("load_best_model_at_end"):
            self._between(
                [f"{name} has changed since the last optimizer step" for name in self._after.changed(seen.trained)]
            )
        still = set(seen.trained) - set(self._first.changed(seen.trained))
        self._still &= still
        if self._updates and not self._told and not seen.argument("load_best_model_at_end"):
            self._judge_still()

    def saved(self, path: Any) -> None:
        for name, before in self._configs.items():
            self._config_kept(name, before, fields_of(self.seen.peft[name]) if name in self.seen.peft else None)

    def _config_kept(self, name: str, before: dict[str, Any], now: dict[str, Any] | None) -> None:
        changed = [key for key in before if now is not None and now.get(key) != before[key]]
        self.judge(
            [
                f"{key} of adapter {name!r}'s config was {before[key]!r} and is {(now or {}).get(key)!r}"
                for key in changed
            ],
            "nothing-else-moves",
        )
        if changed and now is not None:
            before.update(now)

    def _judge_still(self) -> None:
        self._told = True
        unused = _may_be_unused(self.seen)
        if self._still and unused:
            self.skip(unused)
            return
        stuck = [name for name in sorted(self._still) if self._pushed[name] >= 2]
        if self._still and not stuck:
            self.skip("a tensor has not moved, whose gradient was zero or whose updates are below its last bit")
        self.judge([f"{name} is what it was, after {self._updates} updates" for name in stuck][:5])


def _was_skipped(seen: Any) -> bool:
    return bool(getattr(getattr(seen.trainer, "accelerator", None), "optimizer_step_was_skipped", False))


def _may_be_unused(seen: Any) -> str | None:
    """Return why a tensor of the adapter may have no gradient in a step; None if each must have one."""
    config = getattr(seen.base, "config", None)
    if any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return "a mixture of experts uses only some of its layers in a step"
    if getattr(config, "vision_config", None) or getattr(config, "audio_config", None):
        return "a batch of text alone does not use all parts of a multimodal model"
    return None


def norms_of(gradients: list[Any]) -> Any:
    """Return the float32 norms of tensors, as one tensor on the device."""
    return torch.stack(
        [norm.to(gradients[0].device) for norm in torch._foreach_norm([g.float() for g in gradients], 2)]
    )


class Gradients(Check):
    id = "gradients"

    def why_not(self) -> str | None:
        return self.seen.sharded or (None if self.seen.trained else "nothing is trained")

    def begin(self) -> None:
        # A checkpoint may have been saved before the first step with a rate above zero.
        self._updated = False
        self._zero: dict[str, int] = {}

    def before_update(self) -> None:
        seen = self.seen
        rates = [float(group["lr"]) for group in seen.optimizer.param_groups] if seen.optimizer is not None else [1.0]
        if seen.sampled:
            self._look()
        self._updated = self._updated or any(rate > 0 for rate in rates)

    def _look(self) -> None:
        seen = self.seen
        unused = _may_be_unused(seen)
        without = [name for name, p in seen.trained.items() if p.grad is None]
        given = {name: p.grad for name, p in seen.trained.items() if p.grad is not None}
        found = [] if unused else [f"{name} has no gradient" for name in without]
        if unused and without:
            self.skip(unused)
        values = dict(zip(given, norms_of(list(given.values())).tolist(), strict=True)) if given else {}
        if any(value != value or value == float("inf") for value in values.values()):
            scaler = getattr(getattr(seen.trainer, "accelerator", None), "scaler", None)
            names_ = [name for name, value in values.items() if value != value or value == float("inf")]
            if scaler is None:
                found.append(f"the gradient of {names_[0]} is NaN or infinite, and so are {len(names_) - 1} others")
        for name, value in values.items():
            self._zero[name] = self._zero.get(name, 0) + 1 if value == 0 else 0
            limit = 1 if seen.peft_type == "LORA" else 3
            expected = "lora_A" in name and not self._updated
            if value == 0 and self._updated and self._zero[name] >= limit and not unused and not expected:
                found.append(f"the gradient of {name} is zero")
        self.judge(found)
