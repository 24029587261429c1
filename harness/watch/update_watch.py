"""The optimizer: what it holds, its learning rates, clipping, and one tensor's update recomputed in float64."""

from __future__ import annotations

import math
from typing import Any

import torch

from harness.laws.frozen import optimizer_holds_trainables
from harness.laws.loading import NotModelled
from harness.laws.rates import PLATEAU, learning_rate, on_plateau
from harness.trace import Evaluation, Group, Step, Trace
from harness.watch.check import Check
from harness.watch.trained_watch import norms_of

#: Relative error allowed for a norm in float32, and the one that half precision has besides.
NORM = 1e-4

#: Relative error allowed for an update in float32: AdamW divides by the root of a small number. Measured: 2e-6.
UPDATE = 1e-3

#: Tensors whose update is recomputed at a step: one, or if every step is sampled, all up to this many.
TENSORS = 16


def groups_of(seen: Any) -> list[Group]:
    """Return the optimizer's groups, as a trace has them."""
    return [
        Group(
            [seen.names.get(id(p), "?") for p in group["params"]],
            {k: v for k, v in group.items() if isinstance(v, (int, float, bool, str)) or v is None},
        )
        for group in seen.optimizer.param_groups
    ]


class OptimizerHolds(Check):
    id = "optimizer-holds"

    def why_not(self) -> str | None:
        seen = self.seen
        if seen.optimizer is None or not hasattr(seen.optimizer, "param_groups"):
            return "no optimizer of torch's was seen"
        return seen.sharded

    def begin(self) -> None:
        seen = self.seen
        trace = Trace(seen.spec, "", {}) if seen.spec else Trace(None, "", {})  # type: ignore[arg-type]
        trace.output = {"global_step": 1}
        trace.trainable, trace.groups = list(seen.trained), groups_of(seen)
        trace.adapter_before = {name: p.detach() for name, p in seen.trained.items()}
        self.take(optimizer_holds_trainables(trace))
        self._settings()

    def _settings(self) -> None:
        seen, args = self.seen, self.seen.args
        if seen.args is None or not seen.own_optimizer or seen.overridden("create_optimizer"):
            self.skip("the optimizer is the user's own, so its settings are not judged")
            return
        kind = str(getattr(args.optim, "value", args.optim))
        if (
            not kind.startswith("adamw")
            or "anyprecision" in kind
            or getattr(seen.trainer, "optimizer_cls_and_kwargs", None)
        ):
            self.skip(f"the settings of optim={kind!r} are not judged")
            return
        groups, found = seen.optimizer.param_groups, []
        expected = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        for index, group in enumerate(groups):
            found += [
                f"group {index}: {name} is {group[name]}, the arguments say {value}"
                for name, value in expected.items()
                if name in group and _plain(group[name]) != _plain(value)
            ]
        for group in groups:
            for parameter in group["params"]:
                name, decay = seen.names.get(id(parameter), "?"), float(group.get("weight_decay", 0.0))
                wanted = 0.0 if name.endswith("bias") else args.weight_decay if _is_matrix(name) else decay
                if decay != wanted:
                    found.append(f"{name} has weight decay {decay:g}, expected {wanted:g}")
        self.judge(found[:5])


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _is_matrix(name: str) -> bool:
    return name.endswith(("lora_A.weight", "lora_B.weight"))


class LearningRate(Check):
    id = "learning-rate"

    def why_not(self) -> str | None:
        seen = self.seen
        if seen.spec is None:
            return seen.unknown
        if seen.optimizer is None or not hasattr(seen.optimizer, "param_groups"):
            return "no optimizer of torch's was seen"
        if not seen.own_optimizer or seen.overridden(
            "create_optimizer", "create_scheduler", "create_optimizer_and_scheduler"
        ):
            return "the optimizer or its schedule is the user's own"
        if getattr(seen.trainer, "is_deepspeed_enabled", False):
            return "DeepSpeed may have a schedule of its own"
        kind = seen.spec.arguments.get("lr_scheduler_type")
        return "a resumed plateau goes on from earlier evaluations" if kind == PLATEAU and seen.resumed else None

    def begin(self) -> None:
        seen = self.seen
        self._evaluations: list[Evaluation] = []
        self._skipped = 0
        # A resumed run keeps the rates of the checkpoint, whatever the arguments say now (RES-11). `resume` judges those.
        bases = list(getattr(getattr(seen.scheduler, "scheduler", seen.scheduler), "base_lrs", ()))
        self._bases = bases if seen.resumed and len(bases) == len(seen.optimizer.param_groups) else None

    def before_update(self) -> None:
        seen, spec = self.seen, self.seen.spec
        assert spec is not None
        for index, group in enumerate(seen.optimizer.param_groups):
            if isinstance(group["lr"], torch.Tensor) and group["lr"].is_cuda and not seen.sampled:
                return
            rate = float(group["lr"])
            try:
                expected = self._expected(index)
            except NotModelled as reason:
                self.skip(str(reason))
                return
            wrong = not math.isclose(rate, expected, rel_tol=1e-9, abs_tol=1e-20)
            words = f"group {index} uses the learning rate {rate!r}, the schedule's is {expected!r}"
            self.judge([words] if wrong else [])

    def _expected(self, index: int) -> float:
        spec, number = self.seen.spec, self.seen.number - self._skipped
        assert spec is not None
        if spec.arguments.get("lr_scheduler_type") == PLATEAU:
            return on_plateau(spec, self._evaluations, number)
        return learning_rate(spec, number, float(self._bases[index]) if self._bases else None)

    def evaluated(self, metrics: dict[str, Any]) -> None:
        self._evaluations.append(Evaluation(int(self.seen.state.global_step), [], metrics))

    def after_update(self) -> None:
        self._skipped += bool(
            getattr(getattr(self.seen.trainer, "accelerator", None), "optimizer_step_was_skipped", False)
        )


class Clipping(Check):
    id = "clipping"

    def why_not(self) -> str | None:
        seen = self.seen
        if seen.args is None and seen.max_grad_norm is None:
            return "the loop does not say its max_grad_norm"
        if own := seen.overridden("_clip_grad_norm", "_inner_training_loop", "_run_epoch"):
            return f"{own} is the user's own"
        return seen.sharded

    def _most(self) -> float:
        return float(self.seen.argument("max_grad_norm", self.seen.max_grad_norm) or 0)

    def begin(self) -> None:
        self._norm: float | None = None
        self._after: float | None = None

    def before_update(self) -> None:
        seen = self.seen
        self._norm = self._after = None
        if not seen.sampled:
            return
        gradients = [p.grad for p in seen.trained.values() if p.grad is not None]
        if not gradients:
            return
        after = float(norms_of(gradients).double().square().sum().sqrt())
        self._after = after
        last = seen.window[-1] if seen.window else None
        if last is None or last.norms is None:
            self.skip("the gradients before clipping were not seen; the logged norm is compared with those after it")
            return
        scaler = getattr(getattr(seen.trainer, "accelerator", None), "scaler", None)
        scale = float(scaler.get_scale()) if scaler is not None else 1.0
        before = float(last.norms.double().square().sum().sqrt()) / scale
        if not (math.isfinite(before) and math.isfinite(after)):
            return
        self._norm = before
        most = self._most()
        expected = min(before, most) if most > 0 else before
        error = NORM + (4 * max(torch.finfo(g.dtype).eps for g in gradients) if gradients[0].dtype.itemsize == 2 else 0)
        wrong = not math.isclose(after, expected, rel_tol=error, abs_tol=2e-6)
        words = f"the optimizer gets gradients of norm {after:.6g}, expected {expected:.6g}"
        self.judge([f"{words} (the norm was {before:.6g}, max_grad_norm is {most:g})"] if wrong else [])

    def logged(self, logs: dict[str, Any]) -> None:
        seen = self.seen
        if "loss" not in logs or self._after is None:
            return
        most, logged = self._most(), logs.get("grad_norm")
        if logged is None:
            if most > 0:
                self.judge(["the log entry has no grad_norm"], "logs")
            return
        logged = float(logged)
        if not math.isfinite(logged):
            return
        half = any(p.grad is not None and p.grad.dtype.itemsize == 2 for p in seen.trained.values())
        expected = self._norm
        if expected is None and most > 0:
            # What is left after clipping by the logged norm.
            wrong = not math.isclose(self._after, min(logged, most), rel_tol=1e-2 if half else NORM, abs_tol=2e-6)
            self.judge(
                [f"the gradients have norm {self._after:.6g} after clipping, logged is {logged:.6g}"] if wrong else []
            )
        elif expected is not None:
            wrong = not math.isclose(logged, expected, rel_tol=2e-2, abs_tol=2e-6)
            self.judge(
                [f"the logged grad_norm is {logged:.6g}, the norm before clipping was {expected:.6g}"] if wrong else [],
                "logs",
            )


class OptimizerStep(Check):
    id = "optimizer-step"

    def why_not(self) -> str | None:
        seen = self.seen
        if seen.sharded:
            return seen.sharded
        kind = type(seen.optimizer)
        if kind not in (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD):
            return f"the update of {kind.__module__}.{kind.__name__} is not modelled"
        plain = ("amsgrad", "maximize", "nesterov", "dampening", "capturable")
        if any(group.get(name) for group in seen.optimizer.param_groups for name in plain):
            return "the optimizer has options whose update is not modelled"
        return None

    def begin(self) -> None:
        self._turn = 0
        self._before: list[tuple[Any, dict[str, Any], Any, Any, dict[str, Any]]] = []

    def before_update(self) -> None:
        seen = self.seen
        self._before = []
        if not seen.sampled:
            return
        if getattr(getattr(seen.trainer, "accelerator", None), "scaler", None) is not None:
            self.skip("the scaler of fp16 may skip an update")
            return
        held = [
            (p, g) for g in seen.optimizer.param_groups for p in g["params"] if p.grad is not None and p.requires_grad
        ]
        count = min(len(held), TENSORS if seen.every == 1 else 1)
        for index in range(count):
            parameter, group = held[(self._turn + index) % len(held)]
            state = {
                k: v.detach().clone() for k, v in seen.optimizer.state.get(parameter, {}).items() if hasattr(v, "dtype")
            }
            settings = {k: v for k, v in group.items() if k != "params"}
            settings["lr"] = float(settings["lr"])
            self._before.append(
                (parameter, settings, parameter.detach().clone(), parameter.grad.detach().clone(), state)
            )
        self._turn = (self._turn + count) % max(1, len(held))

    def after_update(self) -> None:
        for parameter, settings, before, gradient, state in self._before:
            adam = isinstance(self.seen.optimizer, (torch.optim.AdamW, torch.optim.Adam))
            expected = (_adam if adam else _sgd)(before.double(), gradient.double(), state, settings)
            if (
                adam
                and isinstance(self.seen.optimizer, torch.optim.Adam)
                and not isinstance(self.seen.optimizer, torch.optim.AdamW)
                and settings.get("weight_decay")
            ):
                self.skip("Adam with weight_decay is not modelled")
                continue
            moved = (expected - before.double()).abs()
            largest = float(moved.max()) if moved.numel() else 0.0
            gap = float((parameter.detach().double() - expected).abs().max()) if moved.numel() else 0.0
            eps = torch.finfo(parameter.dtype).eps
            rounding = eps * max(float(before.abs().max()), float(expected.abs().max())) if moved.numel() else 0.0
            if not math.isfinite(gap) or not math.isfinite(largest):
                continue
            # In half precision each of the operations rounds, and the moments are rounded, too.
            wrong = not gap <= (UPDATE if eps < 1e-5 else 8 * eps) * largest + 2 * rounding
            name = self.seen.names.get(id(parameter), "?")
            words = f"the update of {name} is off by {gap:.3g}, where the largest is {largest:.3g}"
            self.judge([words] if wrong else [])
        self._before = []


def _adam(value: Any, g: Any, state: dict[str, Any], settings: dict[str, Any]) -> Any:
    beta1, beta2 = settings["betas"]
    done = float(state["step"]) + 1 if "step" in state else 1.0
    first = beta1 * state["exp_avg"].double() + (1 - beta1) * g if "exp_avg" in state else (1 - beta1) * g
    second = beta2 * state["exp_avg_sq"].double() + (1 - beta2) * g**2 if "exp_avg_sq" in state else (1 - beta2) * g**2
    rate = settings["lr"]
    mean, spread = first / (1 - beta1**done), second / (1 - beta2**done)
    return value * (1 - rate * settings["weight_decay"]) - rate * mean / (spread.sqrt() + settings["eps"])


def _sgd(value: Any, g: Any, state: dict[str, Any], settings: dict[str, Any]) -> Any:
    g = g + settings.get("weight_decay", 0.0) * value
    if settings.get("momentum") and "momentum_buffer" in state:
        g = settings["momentum"] * state["momentum_buffer"].double() + g
    return value - settings["lr"] * g


def as_step(seen: Any) -> Step:
    """Return the present step as a trace has it, without gradients."""
    rates = [float(group["lr"]) for group in seen.optimizer.param_groups] if seen.optimizer is not None else []
    return Step(seen.number, [], rates, {}, {})
