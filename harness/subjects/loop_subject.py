"""LoopSubject: a training loop that somebody wrote, as a subject. The loop tells a Recorder what it does."""

from __future__ import annotations

import contextlib
import inspect
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

from harness.errors import UsageError
from harness.fixtures import data, models
from harness.spec import RunSpec
from harness.spec_fields import unknown
from harness.subjects import given
from harness.subjects.hf_trainer import inject, missing_for_model, recorded_warnings, torch_random_state
from harness.subjects.observer import Observer, inspect_checkpoint
from harness.trace import Checkpoint, Trace
from harness.user_code import quoted

if TYPE_CHECKING:
    import torch

#: Keywords of a loop -> the field of TrainingArguments that each stands for. Any other field may be taken by its own name.
SHORT = {
    "batch_size": "per_device_train_batch_size",
    "learning_rate": "learning_rate",
    "steps": "max_steps",
    "accumulation": "gradient_accumulation_steps",
    "seed": "seed",
    "save_every": "save_steps",
}
#: Keywords of a loop that stand for no argument.
OTHER = ("model", "rows", "recorder", "output", "resume_from", "device")
#: Without these no run can be asked for, or observed.
NEEDED = ("model", "rows", "batch_size", "learning_rate", "steps", "recorder")
#: Arguments that say nothing to a loop.
_MEANINGLESS = ("report_to", "disable_tqdm", "logging_steps", "logging_strategy", "logging_first_step", "save_strategy")


class WentOn(RuntimeError):
    """Ends a loop that makes more steps than it was asked for. It may never end by itself."""


class Recorder:
    """What a loop tells of its run.

    - optimizer(o): before the first step, the optimizer (wrapped by accelerate or not).
    - step(number, loss=, grad_norm=, learning_rate=): after each optimizer step. number: from 1; a run that resumes goes on
      counting. loss: the mean over what the step has trained; grad_norm: before clipping; learning_rate: what it used.
    - saved(path): after a checkpoint is written; path: its directory or file.
    """

    def __init__(self, observer: Observer, steps: int, start: int):
        self._observer, self._steps, self._number = observer, steps, start
        self._given = False
        self._losses: list[float] = []
        #: Whether the loop has begun to train: what it had loaded was in place by then.
        self._began = False

    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the optimizer."""
        self._given = True
        self._observer.watch_optimizer(optimizer)

    def step(
        self,
        number: int,
        loss: SupportsFloat | None = None,
        grad_norm: SupportsFloat | None = None,
        learning_rate: SupportsFloat | None = None,
    ) -> None:
        """Note that an optimizer step was made."""
        if not self._given:
            raise UsageError("the loop calls recorder.step before recorder.optimizer(optimizer)")
        self._begin()
        trace, number = self._observer.trace, int(number)
        if trace.steps:
            trace.steps[-1].number = number
        entry = {"step": number, "loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate}
        trace.log_history.append({k: v if k == "step" else float(v) for k, v in entry.items() if v is not None})
        self._losses += [] if loss is None else [float(loss)]
        self._number = number
        self._observer.event("step_end", number)
        if number > self._steps:
            raise WentOn(f"the loop made step {number}, and {self._steps} steps were asked for")

    def saved(self, path: str | Path) -> None:
        """Note a checkpoint, which is whole."""
        path = Path(path)
        if not path.exists():
            raise UsageError(f"recorder.saved({str(path)!r}): nothing is there")
        trace = self._observer.trace
        self._observer.event("save", self._number)
        if path.is_dir():
            found = replace(inspect_checkpoint(path, trace.spec.adapter.name), step=self._number)
        else:
            found = Checkpoint(self._number, str(path), {path.name: path.stat().st_size}, {}, {}, {}, [self._number])
        trace.checkpoints.append(found)

    # ---- what LoopSubject calls ----

    def _watch(self, model: torch.nn.Module) -> Any:
        """Note the first forward pass of training. Return the hook's handle."""

        def first(module: Any, args: Any) -> None:
            import torch

            if module.training and torch.is_grad_enabled():
                self._begin()

        return model.register_forward_pre_hook(first)

    def _begin(self) -> None:
        if not self._began:
            self._began = True
            self._observer.event("train_begin", self._number)

    def _end(self) -> None:
        self._begin()
        self._observer.event("train_end", self._number)
        mean = sum(self._losses) / len(self._losses) if self._losses else 0.0
        self._observer.trace.output = {"global_step": self._number, "training_loss": mean, "metrics": {}}


class LoopSubject:
    """A training loop as a subject: a function that takes the keywords that it understands, and trains.

        def finetune(model, rows, batch_size, learning_rate, steps, recorder, accumulation=1, seed=42, output=None, ...):
            ...

        LoopSubject(finetune)

    The function is called with those of these keywords that it takes:

    - model: the base with its adapters injected, on the CPU.
    - rows: a list of rows, each a dict of input_ids, attention_mask and labels, lists of ints of one length.
    - batch_size: rows in a micro-batch.
    - learning_rate, steps, seed.
    - accumulation: micro-batches in an optimizer step.
    - output: the directory to write checkpoints in.
    - save_every: write a checkpoint every so many steps; 0: none. The last step is always one of them.
    - resume_from: a checkpoint that it told the recorder of in an earlier run; None: a fresh run.
    - device: "cpu" or "cuda".
    - recorder: a `Recorder`.
    - any field of TrainingArguments by its own name, such as weight_decay or max_grad_norm.

    It must take those of NEEDED. What a case asks for beside and the function does not take is unsupported by name. If it
    takes no seed, the global generators are seeded before it is called.

    - function: found by name in a module, if it is to be judged in several sessions.
    - name: shown in reports; None: the function's name.
    - built_on: the packages whose known defects are not its own.
    - not_for: globs over clause ids -> why they say nothing of it.
    """

    #: The largest profile that judges a loop.
    profile = "checkpoint"

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        built_on: tuple[str, ...] = ("peft", "accelerate", "bitsandbytes", "torch"),
        not_for: Mapping[str, str] | None = None,
    ):
        __tracebackhide__ = True
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            raise UsageError(f"LoopSubject: {quoted(function)} is no function of Python") from None
        self.function = function
        usual = getattr(function, "__name__", type(function).__name__).strip("<>")
        self.name = usual if name is None else given.name("LoopSubject: name", name)
        self.not_for = given.mapping("LoopSubject: not_for", not_for, texts=True)
        self.built_on = tuple(given.lists("LoopSubject:", {"built_on": built_on})["built_on"])
        self._takes = set(parameters)
        anything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
        missing = [] if anything else [name for name in NEEDED if name not in parameters]
        if missing:
            raise UsageError(f"LoopSubject: {self.name} takes no {', no '.join(missing)}; without these no run is made")
        known = {*SHORT, *OTHER, *_arguments()}
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for keyword, one in parameters.items():
            if keyword not in known and one.default is inspect.Parameter.empty and one.kind not in kinds:
                raise unknown(f"LoopSubject, {self.name}", keyword, sorted(known))
        #: (spec of the first leg, step) -> the name of the checkpoint that it wrote.
        self._saved: dict[tuple[str, int], str] = {}

    def unsupported(self, spec: RunSpec) -> str | None:
        """Return by name what the function does not take of what a spec asks for."""
        if spec.launch.several:
            return "the loop runs in one process"
        if (reason := missing_for_model(spec.model, spec.launch.device)) is not None:
            return reason
        if spec.launch.device != "cpu" and "device" not in self._takes:
            return "the loop takes no device"
        if spec.data.iterable:
            return "the loop takes a list of rows, and not an IterableDataset"
        if spec.trainer:
            return f"the loop takes no {next(iter(spec.trainer))}"
        if spec.resume is not None:
            if "resume_from" not in self._takes:
                return "the loop takes no resume_from"
            if isinstance(spec.resume.checkpoint, bool):
                return "the loop is always told which checkpoint to resume from"
            if spec.resume.writer or spec.resume.damage:
                return "the loop resumes from its own checkpoints, as it wrote them"
        usual = _arguments()
        for name, value in spec.arguments.items():
            if name == "num_train_epochs" and "max_steps" in spec.arguments:
                continue
            if name in _MEANINGLESS or self._keyword(name) or (name in usual and usual[name] == value):
                continue
            if name in ("save_steps", "num_train_epochs") and (name != "save_steps" or not _saves(spec)):
                continue
            return f"the loop takes no {_short(name)}"
        if spec.arguments.get("logging_steps", 1) != 1 or spec.arguments.get("logging_strategy", "steps") != "steps":
            return "the loop tells of each step"
        if spec.arguments.get("save_strategy", "no") not in ("no", "steps") or (
            _saves(spec) and spec.arguments.get("save_steps", 500) < 1
        ):
            return "the loop saves every so many steps"
        if _saves(spec) and not {"output", "save_every"} <= self._takes and not {"output", "save_steps"} <= self._takes:
            return "the loop takes no output and save_every"
        return None

    def train(self, spec: RunSpec, directory: Path) -> Trace:
        """Call the function for a spec. See `harness.subjects.Subject.train`."""
        train_rows, eval_rows = data.rows(spec.data)
        observer = Observer(spec, self.name, [*train_rows, *eval_rows], directory)
        steps, start = _steps(spec), spec.resume.checkpoint if spec.resume else 0
        recorder = Recorder(observer, steps, int(start))
        error: Exception | None = None
        handle = None
        with recorded_warnings(observer.trace.warnings), _seeded(None if self._keyword("seed") else spec):
            try:
                # The fixture seeds torch. What a run draws later does not depend on it.
                with torch_random_state():
                    model = inject(models.build(spec.model), spec.adapter)
                data.check_vocabulary(spec.data, [*train_rows, *eval_rows], model)
                observer.watch_model(model)
                handle = recorder._watch(model)
                rows = _Drawn(train_rows, spec) if spec.data.augment else train_rows
                self.function(**self._given(spec, directory, steps, model=model, rows=rows, recorder=recorder))
                recorder._end()
                if not recorder._given:
                    raise UsageError(f"{self.name} never called recorder.optimizer(optimizer)")
            except UsageError:
                raise
            except Exception as caught:
                error = caught
        if handle is not None:
            handle.remove()
        for checkpoint in observer.trace.checkpoints:
            self._saved[spec.hash, checkpoint.step] = Path(checkpoint.path).name
        if _saves(spec):
            # It was asked to save more often than the spec does (`_given`).
            due, kept = int(spec.arguments.get("save_steps", 500)), observer.trace.checkpoints
            observer.trace.checkpoints = [one for one in kept if one.step % due == 0 or one.step == steps]
        return observer.finish(error)

    def _given(self, spec: RunSpec, directory: Path, steps: int, **objects: Any) -> dict[str, Any]:
        """Return the keywords to call the function with."""
        values = {keyword: value for name, value in spec.arguments.items() if (keyword := self._keyword(name))}
        values["steps"] = steps
        values.setdefault("accumulation", 1)
        # Cases ask for a checkpoint at the end, too. Whether a loop writes one unasked is its own affair.
        every = math.gcd(int(spec.arguments.get("save_steps", 500)), steps) if _saves(spec) else 0
        values["save_every"] = values["save_steps"] = every
        resume = None
        if spec.resume is not None:
            name = self._saved.get((spec.first_leg().hash, int(spec.resume.checkpoint)))
            if name is None:
                raise UsageError(f"{self.name} told the recorder of no checkpoint at step {spec.resume.checkpoint}")
            resume = str(directory / name)
        values |= {"output": str(directory), "resume_from": resume, "device": spec.launch.device, **objects}
        return {name: value for name, value in values.items() if name in self._takes}

    def _keyword(self, argument: str) -> str | None:
        """Return the keyword by which the function takes a field of TrainingArguments; None if it does not."""
        return next((one for one in (argument, _short(argument)) if one in self._takes), None)


class _Drawn(Sequence[dict[str, Any]]):
    """Rows that draw random numbers at each access (`DataSpec.augment`), as lists of ints."""

    def __init__(self, rows: list[dict[str, Any]], spec: RunSpec):
        self._made: Any = data.dataset(rows, spec.data)

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, index: Any) -> Any:
        return {name: tensor.tolist() for name, tensor in self._made[index].items()}


def _short(argument: str) -> str:
    return next((short for short, name in SHORT.items() if name == argument), argument)


def _saves(spec: RunSpec) -> bool:
    return bool(spec.arguments.get("save_strategy", "no") != "no")


def _steps(spec: RunSpec) -> int:
    """Return how many optimizer steps a spec asks for."""
    arguments = spec.arguments
    if (most := arguments.get("max_steps", -1)) > 0:
        return int(most)
    batch: int = arguments["per_device_train_batch_size"]
    batches = math.ceil(spec.data.rows / batch)
    accumulation: int = arguments.get("gradient_accumulation_steps", 1)
    epochs: float = arguments.get("num_train_epochs", 3)
    return math.ceil(epochs * math.ceil(batches / accumulation))


def _arguments() -> dict[str, Any]:
    """Return the fields of TrainingArguments and their defaults, in words that a spec has."""
    import dataclasses

    from transformers import TrainingArguments

    found = {}
    for field in dataclasses.fields(TrainingArguments):
        value = field.default
        found[field.name] = getattr(value, "value", value)
    return found


@contextlib.contextmanager
def _seeded(spec: RunSpec | None) -> Iterator[None]:
    """Seed the global generators as a spec says. None: leave them."""
    if spec is not None:
        import numpy as np
        import torch

        seed = spec.arguments.get("seed", 42)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
    yield
