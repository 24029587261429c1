"""A resumed run has what its checkpoint has; and at the end the best model is loaded, if it is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from harness.laws import checkpoint
from harness.laws.equal import differences
from harness.laws.loading import NotModelled
from harness.laws.plan import plan
from harness.subjects.observer import checkpoint_step
from harness.tensors import names
from harness.watch.check import Check
from harness.watch.save_watch import plain_scheduler, short, spelled_json, torch_generators


class Resumed(Check):
    """Judges at the start of a resumed run that it has what the checkpoint has."""

    id = "resume"

    def why_not(self) -> str | None:
        if self.seen.resumed is None:
            return "the run was not resumed"
        return None

    def begin(self) -> None:
        seen = self.seen
        path = Path(str(seen.resumed))
        self._rng_due = not seen.args.save_only_model
        self._trainer_state(path)
        if seen.sharded:
            self.skip(seen.sharded)
            return
        if seen.adapters and seen.trained:
            self._adapter(path)
        self._optimizer(path)

    def _trainer_state(self, path: Path) -> None:
        file, state = path / "trainer_state.json", self.seen.state
        if not file.is_file():
            self.skip("the checkpoint has no trainer_state.json")
            return
        saved = json.loads(file.read_text(encoding="utf-8"))
        found = []
        for key in (
            "global_step",
            "epoch",
            "log_history",
            "total_flos",
            "best_metric",
            "best_global_step",
            "num_input_tokens_seen",
        ):
            if key in saved and hasattr(state, key) and spelled_json(getattr(state, key)) != spelled_json(saved[key]):
                found.append(f"{key} is {short(getattr(state, key))} after resuming, saved was {short(saved[key])}")
        self.judge(found)

    def _adapter(self, path: Path) -> None:
        seen = self.seen
        assert seen.spec is not None
        for name in seen.peft:
            file = next(
                (f for f in (path / name / checkpoint.ADAPTER_FILE, path / checkpoint.ADAPTER_FILE) if f.is_file()),
                None,
            )
            if file is None or (file.parent == path and name != "default" and len(seen.peft) > 1):
                self.skip(f"the checkpoint has no adapter_model.safetensors of adapter {name!r}")
                continue
            saved = {names.canonical(k, name): v for k, v in checkpoint.load_adapter_file(file).items()}
            live = {
                names.canonical(raw, name): p.detach().cpu()
                for raw, p in seen.model.named_parameters()
                if names.is_adapter(raw) and f".{name}" in raw
            }
            found = [f"the checkpoint has no {key}" for key, p in live.items() if key not in saved and p.requires_grad]
            common = {key: saved[key] for key in live if key in saved}
            found += differences(
                {key: live[key] for key in common},
                {k: v.to(live[k].dtype) for k, v in common.items()},
                0.0,
                f"after loading {path.name}:",
            )
            self.judge(found[:5])

    def _optimizer(self, path: Path) -> None:
        seen = self.seen
        if not (path / "optimizer.pt").is_file() or seen.optimizer is None:
            self.skip("the checkpoint has no optimizer.pt")
            return
        try:
            saved = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        except Exception:
            self.skip("optimizer.pt holds more than tensors, and is not unpickled")
            return
        held = [p for group in seen.optimizer.param_groups for p in group["params"]]
        found: list[str] = []
        for index, state in saved["state"].items():
            if index >= len(held):
                found.append(f"optimizer.pt has state of tensor {index}, the optimizer holds {len(held)}")
                break
            name = seen.names.get(id(held[index]), "?")
            live = {
                k: v.detach().cpu() for k, v in seen.optimizer.state.get(held[index], {}).items() if hasattr(v, "dtype")
            }
            expected = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
            if expected and not live:
                found.append(f"the optimizer's state of {name} was not restored: it is empty")
                continue
            expected = {k: v.to(live[k].dtype) if k in live else v for k, v in expected.items()}
            found += differences(live, expected, 0.0, f"the optimizer's state of {name}:")
        self.judge(found[:5])
        file = path / "scheduler.pt"
        if file.is_file() and seen.scheduler is not None:
            schedule = torch.load(file, map_location="cpu", weights_only=True)
            now = plain_scheduler(seen.scheduler).state_dict()
            self.judge(
                [
                    f"the schedule's {key} is {now.get(key)} after resuming, saved was {schedule[key]}"
                    for key in ("last_epoch", "base_lrs", "_last_lr")
                    if key in schedule and now.get(key) != schedule[key]
                ]
            )

    def step_begin(self) -> None:
        if not getattr(self, "_rng_due", False):
            return
        self._rng_due = False
        seen, path = self.seen, Path(str(self.seen.resumed))
        file = "rng_state.pth" if seen.world == 1 else f"rng_state_{seen.rank}.pth"
        if seen.foreign or seen.argument("ignore_data_skip") or not (path / file).is_file():
            self.skip(
                f"callback {seen.foreign[0]} may draw numbers" if seen.foreign else "no state of generators to compare"
            )
            return
        per_epoch = self._per_epoch()
        if per_epoch is None or seen.resumed_step % per_epoch == 0:
            # At the start of an epoch the loader's iterator draws after the state was restored.
            generator = torch.Generator()
            saved = torch_generators(path, file)["cpu"]
            generator.set_state(saved)
            torch.empty((), dtype=torch.int64).random_(generator=generator)
            allowed = [saved, generator.get_state()]
        else:
            allowed = [torch_generators(path, file)["cpu"]]
        right = any(torch.equal(torch.get_rng_state(), state) for state in allowed)
        self.judge([] if right else ["torch's generator is not in the state that was saved"])

    def _per_epoch(self) -> int | None:
        try:
            assert self.seen.spec is not None
            return len(plan(self.seen.spec).windows)
        except (NotModelled, AssertionError):
            return None


class BestModel(Check):
    id = "best-model"

    def why_not(self) -> str | None:
        args = self.seen.args
        if args is None or not args.load_best_model_at_end:
            return "load_best_model_at_end is off"
        if self.seen.resumed:
            return "a resumed run does not know all evaluations"
        own = self.seen.overridden("_determine_best_metric", "_load_best_model")
        return f"{own} is the user's own" if own else self.seen.sharded

    def begin(self) -> None:
        self._metrics: dict[int, float] = {}
        self._saves: set[int] = set()

    def evaluated(self, metrics: dict[str, Any]) -> None:
        name = str(self.seen.args.metric_for_best_model)
        name = name if name.startswith("eval_") else f"eval_{name}"
        if name in metrics:
            self._metrics[int(self.seen.state.global_step)] = float(metrics[name])

    def saved(self, path: Path) -> None:
        self._saves.add(checkpoint_step(path))
        self._judge_metric()

    def _best(self) -> tuple[int, float] | None:
        judged = {step: value for step, value in self._metrics.items() if step and value == value}
        if not judged:
            return None
        sign = 1 if self.seen.args.greater_is_better else -1
        step = max(judged, key=lambda number: (sign * judged[number], -number))
        return step, judged[step]

    def _judge_metric(self) -> None:
        best, state = self._best(), self.seen.state
        if best is not None and state.best_metric is not None:
            wrong = float(state.best_metric) != best[1]
            self.judge(
                [f"best_metric is {state.best_metric!r}, the best evaluation was {best[1]!r} at step {best[0]}"]
                if wrong
                else []
            )

    def end(self) -> None:
        best, path = self._best(), self.seen.state.best_model_checkpoint
        if best is None or not path or best[0] not in self._saves:
            self.skip("the best evaluation has no checkpoint")
            return
        self._judge_metric()
        file = Path(path) / checkpoint.ADAPTER_FILE
        name = self.seen.adapters[0] if self.seen.adapters else ""
        named = Path(path) / name / checkpoint.ADAPTER_FILE
        file = named if name and named.is_file() else file
        if not file.is_file() or not name:
            self.skip("the best checkpoint has no adapter_model.safetensors")
            return
        saved = {names.canonical(k, name): v for k, v in checkpoint.load_adapter_file(file).items()}
        live = {
            names.canonical(raw, name): p.detach().cpu()
            for raw, p in self.seen.model.named_parameters()
            if names.is_adapter(raw) and names.canonical(raw, name) in saved
        }
        found = differences(
            live, {k: saved[k].to(live[k].dtype) for k in live}, 0.0, f"after loading {Path(path).name}:"
        )
        if checkpoint_step(Path(path)) != best[0]:
            found.append(f"{Path(path).name} is taken for the best, which step {best[0]} is")
        self.judge(found[:3])
