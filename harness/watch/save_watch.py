"""A checkpoint right after its save: its files, and whether they hold what is in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from harness.laws import checkpoint, optimizer_file, state_files
from harness.laws.completion import incomplete
from harness.laws.scaler import FILE as SCALER
from harness.subjects.observer import checkpoint_step, digest, inspect_checkpoint
from harness.tensors import names
from harness.trace import Trace
from harness.verdict import Verdict, both, spelled
from harness.watch.as_spec import fields_of, plain
from harness.watch.check import Check
from harness.watch.seen import Seen
from harness.watch.update_watch import as_step, groups_of

#: Fields of adapter_config.json that are another in memory: peft switches a saved adapter to inference.
_OTHER_IN_FILE = (
    "inference_mode",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "peft_type",
    "task_type",
)

#: Fields that are compared, if the config has them. Others may be written in a form of their own.
_FIELDS = (
    *("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "bias", "use_rslora", "use_dora"),
    *(
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
        "init_lora_weights",
        "num_virtual_tokens",
        "layers_to_transform",
    ),
)


def trace_of(seen: Seen, path: Path) -> Trace:
    """Return what the laws on checkpoints need to know of a run, at the moment of a save."""
    assert seen.spec is not None
    found = Trace(seen.spec, "Watch", {}, directory=str(path.parent))
    adapter = seen.spec.adapter.name
    found.trainable = list(seen.trained)
    live = {name: p.detach().cpu().clone() for name, p in seen.trained.items()}
    found.adapter, found.adapter_before = live, live
    found.shared = [
        name
        for raw, p in seen.model.named_parameters(remove_duplicate=False)
        if p.requires_grad and (name := names.canonical(raw, adapter)) != seen.names[id(p)]
    ]
    found.parameters = {
        seen.names[id(p)]: [str(p.dtype).removeprefix("torch."), list(p.shape)]
        for p in seen.model.parameters()
        if id(p) in seen.names
    }
    # Names alone, but for other adapters, whose values are compared, too.
    found.base = {
        name: digest(tensor) if names.is_adapter(raw) else ""
        for raw, tensor in seen.model.state_dict().items()
        if hasattr(tensor, "dtype") and (name := names.canonical(raw, adapter)) not in live
    }
    step = int(seen.state.global_step)
    found.steps = [as_step(seen)]
    found.output = {"global_step": step}
    if seen.optimizer is not None and seen.sharded is None:
        found.groups = groups_of(seen)
        found.optimizer_state = {
            seen.names[id(p)]: {k: v.detach().cpu().clone() for k, v in state.items() if hasattr(v, "dtype")}
            for p, state in seen.optimizer.state.items()
            if id(p) in seen.names
        }
    found.checkpoints = [inspect_checkpoint(path, adapter)]
    return found


class Checkpoints(Check):
    """Judges each checkpoint. What rank 0 writes is judged by rank 0; each rank judges the state of its own generators."""

    id = "checkpoint-files"

    def why_not(self) -> str | None:
        if self.seen.spec is None:
            self._all(self.seen.unknown)
            return self.seen.unknown
        if not self.seen.adapters:
            self._all("the model has no adapter, so what a checkpoint must hold is not known")
            return "the model has no adapter, so what a checkpoint must hold is not known"
        if own := self.seen.overridden("_save_checkpoint", "_save", "save_model"):
            self._all(f"{own} is the user's own")
            return f"{own} is the user's own"
        return None

    def _all(self, reason: str) -> None:
        for check in ("checkpoint-adapter", "checkpoint-optimizer", "checkpoint-state"):
            self.skip(reason, check)

    def begin(self) -> None:
        self._there = {path.name for path in Path(self.seen.args.output_dir).glob("checkpoint-*")}

    def saved(self, path: Path) -> None:
        self._generators(path)
        if self.seen.rank != 0:
            return
        trace = trace_of(self.seen, path)
        files = set(trace.checkpoints[0].files)
        self._files(path, files)
        self._rotation(path)
        if any(name.startswith("adapter_model.") and name.endswith(".bin") for name in files):
            self.skip("the adapter is saved as a pickle, which is not read", "checkpoint-adapter")
        elif self.seen.sharded:
            self.skip(self.seen.sharded, "checkpoint-adapter")
        else:
            self._adapter(path, trace)
        self._optimizer(path, trace, files)
        self._state(trace)

    def _files(self, path: Path, files: set[str]) -> None:
        seen, args = self.seen, self.seen.args
        below = {Path(name).name for name in files}
        needed = {"adapter_config.json", "trainer_state.json", "training_args.bin"}
        states = {"optimizer.pt", "scheduler.pt"} if seen.sharded is None else set()
        found = []
        if args.save_only_model:
            extra = {"optimizer.pt", "scheduler.pt", SCALER} & below | {n for n in below if n.startswith("rng_state")}
            found += [f"{path.name} holds {name}, although save_only_model is True" for name in sorted(extra)]
        else:
            needed |= states
        if hasattr(seen.model, "create_or_update_model_card"):
            needed.add("README.md")
        found += [f"{path.name} has no {name}" for name in sorted(needed - below)]
        self.judge(found)

    def _rotation(self, path: Path) -> None:
        limit = self.seen.args.save_total_limit
        best = self.seen.state.best_model_checkpoint
        if best and self.seen.args.load_best_model_at_end and not Path(best).is_dir():
            self.judge([f"the best checkpoint {Path(best).name} was deleted"])
        if not limit or limit < 1:
            return
        left = [each.name for each in path.parent.glob("checkpoint-*") if checkpoint_step(each) >= 0]
        most = max(limit, 2) if best else limit
        self.judge([f"{len(left)} checkpoints are left, save_total_limit is {limit}"] if len(left) > most else [])

    def _adapter(self, path: Path, trace: Trace) -> None:
        laws = [
            checkpoint.adapter_only, checkpoint.last_is_current, checkpoint.dtype_on_disk, checkpoint.clean_keys,
            checkpoint.size_law, checkpoint.nothing_twice,
        ]  # fmt: skip
        if not self.seen.trained:
            self.skip("nothing is trained", "checkpoint-adapter")
            return
        verdicts: list[Verdict] = []
        for law in laws:
            judged = law(trace)
            if law is checkpoint.dtype_on_disk:
                judged = _of_trained(judged, trace)
            verdicts.append(judged)
        if len(self.seen.peft) > 1 and self.seen.peft_type == "LORA" and hasattr(self.seen.model, "get_base_model"):
            verdicts.append(checkpoint.every_adapter_saved(trace))
        self.take(both(*verdicts), "checkpoint-adapter")
        self._config(path)

    def _config(self, path: Path) -> None:
        config = self.seen.config
        name = self.seen.adapters[0]
        file = next(
            (f for f in (path / name / "adapter_config.json", path / "adapter_config.json") if f.is_file()), None
        )
        if file is None:
            return
        saved, memory = json.loads(file.read_text(encoding="utf-8")), fields_of(config)
        found = []
        for key in _FIELDS:
            if key not in memory or key in _OTHER_IN_FILE:
                continue
            if key not in saved:
                found.append(f"{path.name}/adapter_config.json has no {key}")
            elif _sorted(saved[key]) != _sorted(memory[key]):
                found.append(f"{path.name}/adapter_config.json: {key} is {saved[key]!r}, in memory {memory[key]!r}")
        self.judge(found, "checkpoint-adapter")

    def _optimizer(self, path: Path, trace: Trace, files: set[str]) -> None:
        seen = self.seen
        if seen.sharded or seen.args.save_only_model or "optimizer.pt" not in files:
            reason = seen.sharded or ("save_only_model" if seen.args.save_only_model else "no optimizer.pt")
            self.skip(f"no optimizer is saved as a whole ({reason})", "checkpoint-optimizer")
            return
        try:
            self.take(optimizer_file.optimizer_is_current(trace), "checkpoint-optimizer")
            self.take(optimizer_file.size_law(trace), "checkpoint-optimizer")
            if type(seen.optimizer) is torch.optim.AdamW and all(p.grad is None for p in seen.trained.values()):
                whole = all(seen.optimizer.state.get(p) for p in seen.trained.values())
                if whole:
                    self.take(_without_steps(optimizer_file.holds_the_trained_tensors(trace)), "checkpoint-optimizer")
        except Exception as error:
            if "weights_only" not in str(error) and "Weights only" not in str(error):
                raise
            self.skip("optimizer.pt holds more than tensors, and is not unpickled", "checkpoint-optimizer")
        if seen.scheduler is not None and "scheduler.pt" in files:
            self._scheduler(trace)
        scaler = getattr(getattr(seen.trainer, "accelerator", None), "scaler", None)
        if scaler is not None and SCALER in files:
            saved, live = optimizer_file.load_state(trace.checkpoints[0], SCALER), scaler.state_dict()
            self.judge(
                [
                    f"{path.name}/{SCALER}: {k} is {saved.get(k)}, in memory {live[k]}"
                    for k in live
                    if saved.get(k) != live[k]
                ],
                "checkpoint-optimizer",
            )
        elif scaler is not None:
            self.judge([f"{path.name} has no {SCALER}"], "checkpoint-optimizer")

    def _scheduler(self, trace: Trace) -> None:
        live = plain_scheduler(self.seen.scheduler).state_dict()
        saved = optimizer_file.load_state(trace.checkpoints[0], "scheduler.pt")
        where = f"checkpoint-{trace.checkpoints[0].step}/scheduler.pt"
        found = [
            f"{where}: {key} is {saved.get(key)}, in memory {live[key]}"
            for key in ("last_epoch", "_last_lr", "base_lrs", "_step_count")
            if key in live and saved.get(key) != live[key]
        ]
        self.judge(found, "checkpoint-optimizer")

    def _state(self, trace: Trace) -> None:
        saved, state = trace.checkpoints[0].state, self.seen.state
        where = f"checkpoint-{trace.checkpoints[0].step}/trainer_state.json"
        found = incomplete(trace)
        for key in (
            "global_step",
            "max_steps",
            "epoch",
            "best_metric",
            "best_model_checkpoint",
            "total_flos",
            "log_history",
        ):
            live = getattr(state, key, None)
            if spelled_json(saved.get(key)) != spelled_json(live):
                found.append(f"{where}: {key} is {short(saved.get(key))}, in memory {short(live)}")
        self.judge(found, "checkpoint-state")

    def _generators(self, path: Path) -> None:
        seen = self.seen
        if seen.args.save_only_model:
            self.skip("save_only_model saves no generators", "checkpoint-state")
            return
        file = "rng_state.pth" if seen.world == 1 else f"rng_state_{seen.rank}.pth"
        if not (path / file).is_file():
            self.judge([f"{path.name} has no {file}"], "checkpoint-state")
            return
        saved = torch_generators(path, file)
        live = state_files.generators()
        found = [
            f"{path.name}/{file}: the state of {name!r} is not the generator's at the save"
            for name in ("python", "numpy", "cpu")
            if name in saved and not state_files._equal(saved[name], live[name])
        ]
        if seen.foreign:
            self.skip(f"callback {seen.foreign[0]} may draw numbers after the save", "checkpoint-state")
        else:
            self.judge(found, "checkpoint-state")


def torch_generators(path: Path, file: str) -> dict[str, Any]:
    """Return the states in a file of generators. No code in it is run."""
    from harness.trace import Checkpoint

    return state_files.load_generators(Checkpoint(0, str(path), {}, {}, {}, {}, []), file)


def plain_scheduler(scheduler: Any) -> Any:
    """Return torch's schedule inside accelerate's wrapper."""
    return getattr(scheduler, "scheduler", scheduler)


def _of_trained(judged: Verdict, trace: Trace) -> Verdict:
    """Leave out what is saved beside the trained tensors, whose names a base may have in another form."""
    seen = tuple(s for s in judged.seen if any(name in s for name in trace.trainable))
    return Verdict(judged.outcome if seen else "pass", judged.expected, seen)


def _without_steps(judged: Verdict) -> Verdict:
    """Leave out how many steps a tensor counts: fp16 skips some, and a resumed run may have started anew."""
    seen = tuple(s for s in judged.seen if " counts " not in s)
    return Verdict(judged.outcome if seen else "pass", judged.expected, seen)


def _sorted(value: Any) -> Any:
    value = plain(value)
    return sorted(value, key=str) if isinstance(value, list) else value


def spelled_json(value: Any) -> Any:
    """Return a value as JSON gives it back, with NaN as text."""
    return spelled(json.loads(json.dumps(value, default=float)))


def short(value: Any) -> str:
    """Return a value in at most 120 characters."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
