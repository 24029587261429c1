"""Precision, the gradient scaler, and what an adapted layer adds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from harness.laws.scaler import state_at
from harness.watch.check import Check
from harness.watch.seen import MicroPass

#: Adapted layers that are looked at in a sampled step, one after the other in turn.
LAYERS = 2

#: By how many standard deviations the share of dropped numbers may differ from lora_dropout.
DEVIATIONS = 7.0


class Precision(Check):
    id = "precision"

    def why_not(self) -> str | None:
        if self.seen.args is None:
            return self.seen.unknown
        return "DeepSpeed casts the model itself" if getattr(self.seen.trainer, "is_deepspeed_enabled", False) else None

    def begin(self) -> None:
        args = self.seen.args
        self._asked = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        self._handle: Any = None
        self._dtypes = {name: p.dtype for name, p in self.seen.trained.items()}
        if args.fp16 and self.seen.sharded is None:
            half = [name for name, dtype in self._dtypes.items() if dtype == torch.float16]
            self.judge([f"{name} is trained in float16, whose gradients cannot be unscaled" for name in half[:1]])

    def step_begin(self) -> None:
        """Look at autocast from inside the model: the Trainer's wrapper switches it on in forward()."""
        self._drop()
        if not self.seen.sampled or self.seen.argument("torch_compile"):
            return
        layer = next((m for m in self.seen.model.modules() if not list(m.children()) and list(m.parameters())), None)
        if layer is not None:
            self._handle = layer.register_forward_pre_hook(self._inside)

    def _inside(self, module: Any, inputs: Any) -> None:
        try:
            self._drop()
            device = next(iter(module.parameters())).device.type
            on = torch.is_autocast_enabled(device) if device != "mps" else False
            dtype = torch.get_autocast_dtype(device) if on else None
            asked = self._asked
            words = f"the model computes {f'under autocast in {dtype}' if on else 'without autocast'}"
            name = "bf16" if asked == torch.bfloat16 else "fp16"
            if asked is not None and dtype != asked:
                self.judge([f"{words}, although {name}=True"])
            elif asked is None and on and not self.seen.overridden("compute_loss", "training_step"):
                self.judge([f"{words}, although neither bf16 nor fp16 is asked for"])
            else:
                self.judge([])
        except Exception as error:
            self.skip(f"Watch failed with {type(error).__name__}: {error}")

    def _drop(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def forward(self, batch: MicroPass, inputs: dict[str, Any], output: Any) -> None:
        logits = output.get("logits") if isinstance(output, Mapping) else None
        if (
            self.seen.sampled
            and self._asked is not None
            and isinstance(logits, torch.Tensor)
            and self.seen.sharded is None
        ):
            wrong = logits.dtype.itemsize == 2
            self.judge([f"the model's outputs are {logits.dtype}, expected float32 under autocast"] if wrong else [])

    def before_update(self) -> None:
        if not self.seen.sampled:
            return
        changed = [n for n, p in self.seen.trained.items() if p.dtype != self._dtypes.get(n, p.dtype)]
        self.judge([f"{name} is {self.seen.trained[name].dtype}, and was {self._dtypes[name]}" for name in changed[:3]])

    def end(self) -> None:
        self._drop()


class Scaler(Check):
    id = "scaler"

    def why_not(self) -> str | None:
        scaler = getattr(getattr(self.seen.trainer, "accelerator", None), "scaler", None)
        if scaler is None:
            return "there is no gradient scaler: fp16 is off"
        return "a resumed scaler goes on from an earlier state" if self.seen.resumed else self.seen.sharded

    def begin(self) -> None:
        self._steps = 0
        self._skipped: list[int] = []
        self._first = float(self.seen.trainer.accelerator.scaler.get_scale())

    def after_update(self) -> None:
        self._steps += 1
        if bool(self.seen.trainer.accelerator.optimizer_step_was_skipped):
            self._skipped.append(self._steps)
        if self.seen.sampled:
            self._judge()

    def _judge(self) -> None:
        scaler = self.seen.trainer.accelerator.scaler
        expected = state_at(self._steps, self._skipped)["scale"] * self._first / state_at(0, [])["scale"]
        scale = float(scaler.get_scale())
        growth = getattr(scaler, "_growth_interval", 2000)
        if growth != 2000:
            self.skip(f"the scaler grows each {growth} steps")
            return
        self.judge(
            [f"the scale is {scale:g}, expected {expected:g} after skips at {self._skipped}"]
            if scale != expected
            else []
        )


class AdapterEffect(Check):
    """Judges at sampled steps that a LoRA layer returns base(x) + scaling * B(A(dropout(x)))."""

    id = "adapter-effect"

    def why_not(self) -> str | None:
        seen = self.seen
        if seen.peft_type != "LORA":
            return (
                f"what a {seen.peft_type} layer adds is not modelled" if seen.peft_type else "the model has no adapter"
            )
        if seen.argument("torch_compile"):
            return "torch_compile: a hook would change what is compiled"
        if len(seen.adapters) != 1:
            return "several adapters are active"
        return seen.sharded

    def begin(self) -> None:
        self._handles: list[Any] = []
        self._turn = 0
        name = self.seen.adapters[0]
        self._layers = [
            (path, module)
            for path, module in self.seen.base.named_modules()
            if hasattr(module, "base_layer") and name in getattr(module, "lora_A", {}) and _is_plain(module, name)
        ]
        if not self._layers:
            self.skip("no linear LoRA layer without a variant")
        for path, module in self._layers:
            if (expected := self._scaling(path)) is not None:
                seen = float(module.scaling[name])
                wrong = not math.isclose(seen, expected, rel_tol=1e-9)
                self.judge([f"{path} scales its adapter by {seen:g}, the config says {expected:g}"] if wrong else [])

    def _scaling(self, path: str) -> float | None:
        config = self.seen.config
        r = _of_pattern(getattr(config, "rank_pattern", None), path, config.r)
        alpha = _of_pattern(getattr(config, "alpha_pattern", None), path, config.lora_alpha)
        return alpha / (math.sqrt(r) if getattr(config, "use_rslora", False) else r) if r else None

    def step_begin(self) -> None:
        self._drop()
        if not self.seen.sampled or not self._layers:
            return
        for index in range(min(LAYERS, len(self._layers))):
            path, layer = self._layers[(self._turn + index) % len(self._layers)]
            _Look(self, path, layer)
        self._turn = (self._turn + LAYERS) % len(self._layers)

    def end(self) -> None:
        self._drop()

    def _drop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _is_plain(module: Any, name: str) -> bool:
    a = module.lora_A[name]
    return (
        isinstance(a, torch.nn.Linear)
        and not (getattr(module, "use_dora", {}) or {}).get(name)
        and not (getattr(module, "lora_variant", {}) or {}).get(name)
        and name in getattr(module, "lora_B", {})
    )


def _of_pattern(patterns: Any, path: str, default: Any) -> Any:
    for key, value in dict(patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


class _Look:
    """Watches one forward pass of one layer, by hooks on it and its parts, and judges it when it has ended."""

    def __init__(self, check: AdapterEffect, path: str, layer: Any):
        self.check, self.path, self.layer, self.name = check, path, layer, check.seen.adapters[0]
        self.base_in: torch.Tensor | None = None
        self.base_out: torch.Tensor | None = None
        self.a_in: torch.Tensor | None = None
        self.b_out: torch.Tensor | None = None
        self.handles = [
            layer.register_forward_hook(self._whole),
            layer.base_layer.register_forward_hook(self._base),
            layer.lora_A[self.name].register_forward_hook(self._a),
            layer.lora_B[self.name].register_forward_hook(self._b),
        ]
        check._handles += self.handles

    def _base(self, module: Any, inputs: Any, output: Any) -> None:
        if inputs:
            self.base_in, self.base_out = inputs[0].detach(), output.detach().clone()

    def _a(self, module: Any, inputs: Any, output: Any) -> None:
        if inputs:
            self.a_in = inputs[0].detach()

    def _b(self, module: Any, inputs: Any, output: Any) -> None:
        self.b_out = output.detach()

    def _whole(self, module: Any, inputs: Any, output: Any) -> None:
        if not module.training or not inputs:
            return
        for handle in self.handles:
            handle.remove()
        try:
            with torch.no_grad():
                self.check.judge(
                    [f"{self.path}: {sentence}" for sentence in self._findings(inputs[0].detach(), output.detach())]
                )
        except Exception as error:
            self.check.skip(f"Watch failed with {type(error).__name__}: {error}")

    def _findings(self, x: Any, output: Any) -> list[str]:
        if self.layer.merged or self.layer.disable_adapters:
            return ["its adapter is merged or switched off while it is trained"]
        base_in, base_out, a_in, b_out = self.base_in, self.base_out, self.a_in, self.b_out
        if base_in is None or base_out is None or a_in is None or b_out is None:
            return ["its adapter takes no part in the forward pass"]
        found = []
        if not torch.equal(base_in, x):
            found.append("its base layer is given another input than the layer")
        dropout = next((module for name, module in self.layer.lora_dropout.items() if name == self.name), None)
        found += self._dropped(
            x.to(a_in.dtype), a_in, float(getattr(self.check.seen.config, "lora_dropout", 0.0)), dropout
        )
        scaling = self.check._scaling(self.path) or float(self.layer.scaling[self.name])
        expected = base_out.float() + b_out.float() * scaling
        size = base_out.float().abs() + (b_out.float() * scaling).abs()
        eps = max(torch.finfo(t.dtype).eps for t in (output, base_out, b_out))
        gap = (output.float() - expected).abs()
        if bool((gap > 8 * eps * size + 1e-12).any()):
            share = float(((output.float() - base_out.float()) * b_out.float()).sum())
            whole = float((b_out.float() * b_out.float()).sum()) * scaling
            times = f", {share / whole:.4g} times the adapter is added" if whole else ""
            found.append(f"its output is off by {float(gap.max()):.3g}{times}")
        return found

    @staticmethod
    def _dropped(x: torch.Tensor, a_in: torch.Tensor, asked: float, dropout: Any) -> list[str]:
        """Return what is wrong with the dropout of the adapter's input, a_in. asked: lora_dropout of the config."""
        counted = x != 0
        total = int(counted.sum())
        if not total or not isinstance(dropout, (torch.nn.Dropout, torch.nn.Identity)):
            return []
        kept = counted & (a_in != 0)
        share = 1 - int(kept.sum()) / total
        if not asked:
            return [] if torch.equal(a_in, x) else ["its adapter is given another input, although lora_dropout is 0"]
        spread = math.sqrt(asked * (1 - asked) / total)
        if abs(share - asked) > DEVIATIONS * spread + 1 / total:
            return [f"{share:.1%} of its adapter's input are dropped, lora_dropout is {asked:g}"]
        ratio = (a_in.float() * (1 - asked) - x.float()).abs()[kept]
        wrong = bool((ratio > 4 * torch.finfo(x.dtype).eps * x.float().abs()[kept] + 1e-12).any())
        return ["what dropout keeps is not divided by 1 - lora_dropout"] if wrong else []
