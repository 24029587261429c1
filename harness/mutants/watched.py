"""Does Watch alone see a mutant, and how soon?

1. `RUNS` is a table of small runs. A process is forked for each mutant, and trains them one after the other with it.
2. Two Watches are on every Trainer there (`attach`): one that looks at every step, and one with the default sampling.
   Both write what they find, and the first also what the run did at each step.
3. `judge` compares these lines with those of the same runs without the mutant. A mutant counts (`Watched.changes`) if one
   of the runs trains, logs or saves anything else than without it, bit for bit. Once Watch has seen it, no further run
   is trained.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.runs.scenarios import PLAIN
from harness.spec import RunSpec

if TYPE_CHECKING:
    from harness.mutants.catalogue import Mutant
    from harness.mutants.child import Writer
    from harness.mutants.pool import Pool
    from harness.progress import Progress

#: Files of lines, one for each process, in the directory of the child.
PATTERN = "watch-*.jsonl"

#: Arguments that differ from run to run because of their paths.
_PATHS = ("output_dir", "logging_dir", "run_name")

#: Numbers the runs of this process.
_COUNT = itertools.count(1)

#: Parts of log entries that are timings.
_TIMINGS = ("runtime", "per_second")


#: What most of the runs have: ragged rows, five steps an epoch of two micro-batches each, and everything that a schedule,
#: an optimizer and a log can be wrong about.
_BASE = PLAIN.but(
    data={"rows": 20, "min_length": 6, "ignored": 0.2},
    max_steps=8,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    learning_rate=1e-2,
    lr_scheduler_type="polynomial",
    lr_scheduler_kwargs={"power": 2.0},
    warmup_steps=2,
    weight_decay=0.1,
    max_grad_norm=0.1,
    logging_steps=1,
    save_strategy="steps",
    save_steps=3,
    lora={"lora_dropout": 0.1},
)
_EVALUATED: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "load_best_model_at_end": True,
}

#: Name -> run. A run that resumes takes the checkpoint that the run before it has written.
RUNS: dict[str, RunSpec] = {
    "accumulating": _BASE,
    "resumed in an epoch": _BASE.resumed(6),
    "evaluated": _BASE.but(data={"eval_rows": 5}, save_total_limit=1, **_EVALUATED),
    "resumed after an evaluation": _BASE.but(data={"eval_rows": 5}, **(_EVALUATED | {"save_total_limit": 3})).resumed(
        6
    ),
    "smoothed": _BASE.but(label_smoothing_factor=0.1),
    "copies and magnitudes": _BASE.but(lora={"modules_to_save": ["lm_head"], "use_dora": True, "bias": "lora_only"}),
    "half": _BASE.but(bf16=True, model={"dtype": "float32"}),
    "saves a model only": _BASE.but(save_only_model=True, save_total_limit=1, save_steps=2, max_steps=5),
    "all linear": _BASE.but(lora={"target_modules": "all-linear", "use_rslora": True}, max_steps=4),
    "packed": _BASE.but(model={"quantization": "nf4", "prepare_for_kbit": True}, max_steps=4),
    "longer": _BASE.but(max_steps=12, save_strategy="no", lora={"lora_dropout": 0.0}),
}

#: Chapter of a mutant -> the runs that are trained with it, in this order.
_OF_CHAPTER: dict[str, tuple[str, ...]] = {
    "API": ("accumulating",),
    "FRZ": ("accumulating", "copies and magnitudes", "all linear", "packed"),
    "LOSS": ("accumulating", "smoothed"),
    "ACC": ("accumulating", "smoothed"),
    "LOOP": ("accumulating",),
    "RNG": ("accumulating",),
    "LOG": ("accumulating",),
    "CB": ("accumulating", "evaluated"),
    "CKPT": ("accumulating", "saves a model only", "copies and magnitudes", "resumed in an epoch"),
    "RES": ("resumed in an epoch", "resumed after an evaluation"),
    "BEST": ("evaluated", "resumed after an evaluation"),
    "EVAL": ("evaluated",),
    "AMP": ("half",),
    "QLORA": ("packed",),
    "MEM": ("longer",),
    "PERF": ("longer",),
}

#: Runs of mutants of other chapters, such as EMB and IO.
_USUAL = ("accumulating", "copies and magnitudes")


@dataclass
class Lines:
    """What was written.

    - runs: key of a run -> what each run with that key did: (step, digest) in order.
    - found: (sampling, key of the run, check, step, sentence) of each finding.
    """

    runs: dict[str, list[list[tuple[int, str]]]] = field(default_factory=dict)
    found: list[tuple[str, str, str, int, str]] = field(default_factory=list)


@dataclass
class Watched:
    """What Watch saw of a mutant.

    - changes: whether a run of its cells does anything else than without it.
    - caught: whether Watch(every=1) found something that it does not find without the mutant.
    - soon: whether it did so within one step of the first difference.
    - sampled: whether Watch() with the default sampling found something.
    - sentence: the first finding.
    """

    changes: bool = False
    caught: bool = False
    soon: bool = False
    sampled: bool = False
    sentence: str = ""


def attach(directory: Path) -> None:
    """Add both Watches to every Trainer that this process makes from here on, and the ranks that it forks.

    - directory: where lines are written.
    """
    from transformers import Trainer

    original = Trainer.__init__

    @functools.wraps(original)
    def watched(self: Any, *args: Any, **options: Any) -> None:
        bound = inspect.signature(original).bind(self, *args, **options)
        added = [_recording()(directory, every) for every in (1, None)]
        bound.arguments["callbacks"] = [*(bound.arguments.get("callbacks") or []), *added]
        original(*bound.args, **bound.kwargs)

    Trainer.__init__ = watched  # type: ignore[method-assign]


@functools.cache
def _recording() -> Any:
    """Return the class of Watch that writes lines. It is made here, because it imports transformers."""
    from harness.watch.callback import Watch

    class Recording(Watch):
        def __init__(self, directory: Path, every: int | None):
            super().__init__(every=every, quiet=True)
            self._directory, self._sampling = directory, "every" if every else "default"
            self._key, self._run = "", 0

        def _write(self, line: dict[str, Any]) -> None:
            with (self._directory / f"watch-{os.getpid()}.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")

        def _did(self, kind: str, step: int, value: Any) -> None:
            if self._sampling == "every":
                text = json.dumps([kind, value], sort_keys=True, default=str)
                seal = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
                self._write({"run": self._run, "key": self._key, "step": step, "did": seal})

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self._key, self._run = _key(args, state, given.get("model"), given.get("train_dataloader")), next(_COUNT)
            super().on_train_begin(args, state, control, **given)
            self._did("begin", state.global_step, _adapter(given.get("model")))

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            super().on_step_end(args, state, control, **given)
            seen = self.run.seen if self.run else None
            losses = [None if batch.loss is None else float(batch.loss) for batch in (seen.window if seen else ())]
            self._did("step", state.global_step, [losses, _adapter(given.get("model"))])

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
            super().on_log(args, state, control, logs=logs, **given)
            plain = {name: value for name, value in dict(logs or {}).items() if not any(t in name for t in _TIMINGS)}
            if not any(name.startswith("eval_") for name in plain):
                self._did("log", state.global_step, plain)

        def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            super().on_save(args, state, control, **given)
            if args.process_index == 0:
                self._did("save", state.global_step, _saved(args, state))

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            super().on_train_end(args, state, control, **given)
            self._did("end", state.global_step, _adapter(given.get("model")))

        def _act(self, control: Any) -> None:
            for finding in self._fresh:
                self._write(
                    {
                        "found": self._sampling,
                        "key": self._key,
                        "check": finding.check,
                        "step": finding.step,
                        "sentence": finding.sentence,
                    }
                )
            super()._act(control)

    return Recording


def _key(args: Any, state: Any, model: Any, loader: Any) -> str:
    """Return what a run is known by: its arguments, adapters, model and the step it begins at."""
    values = {name: value for name, value in args.to_dict().items() if name not in _PATHS}
    configs = {name: vars(config) for name, config in dict(getattr(model, "peft_config", None) or {}).items()}
    shapes = [tuple(p.shape) for p in model.parameters()]
    rows: Any = getattr(loader, "dataset", None)
    parts = [
        values,
        configs,
        shapes,
        state.global_step,
        args.process_index,
        len(rows) if hasattr(rows, "__len__") else 0,
    ]
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=_text).encode(), digest_size=8).hexdigest()


def _text(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(type(value))


def _adapter(model: Any) -> list[str]:
    from harness.subjects.observer import digest

    return [digest(p) for p in model.parameters() if p.requires_grad and not hasattr(p, "to_local")]


def _saved(args: Any, state: Any) -> Any:
    from harness.subjects.reporter import newest_checkpoint

    path = newest_checkpoint(args.output_dir, state.global_step)
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    whole = [
        name for name in names if name.endswith((".safetensors", "adapter_config.json", "scheduler.pt", "optimizer.pt"))
    ]
    contents = {name: hashlib.blake2b((path / name).read_bytes(), digest_size=8).hexdigest() for name in whole}
    left = sorted(each.name for each in path.parent.glob("checkpoint-*"))
    return [names, contents, left, _generators(path)]


def _generators(path: Path) -> list[str]:
    from harness.watch.save_watch import torch_generators

    found = []
    for file in sorted(path.glob("rng_state*.pth")):
        state = torch_generators(path, file.name)["cpu"]
        found.append(hashlib.blake2b(bytes(state.tolist()), digest_size=8).hexdigest())
    return found


def read(directory: Path) -> Lines:
    """Return what both Watches wrote in a child's directory."""
    lines, runs = Lines(), {}
    for file in sorted(directory.glob(PATTERN)):
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the process was ended while it wrote its last line
            if "found" in line:
                lines.found.append((line["found"], line["key"], line["check"], line["step"], line["sentence"]))
                continue
            name = (file.name, line["run"], line["key"])
            if name not in runs:
                runs[name] = []
                lines.runs.setdefault(line["key"], []).append(runs[name])
            runs[name].append((line["step"], line["did"]))
    return lines


def judge(seen: Lines, plain: Lines) -> Watched:
    """Return what Watch saw of a mutant.

    - seen: the lines with the mutant.
    - plain: those of all cells without any. What is found there, too, does not count.
    """
    known = {(check, _letters(sentence)) for _, _, check, _, sentence in plain.found}
    news = [one for one in seen.found if (one[2], _letters(one[4])) not in known]
    shows: dict[str, int] = {}
    changed = False
    for key, runs in seen.runs.items():
        for run in runs:
            step = _first_difference(run, plain.runs.get(key, []))
            if step is not None:
                changed = True
                shows[key] = min(step, shows.get(key, step))
    every = [one for one in news if one[0] == "every"]
    soon = any(step <= shows.get(key, step) + 1 for _, key, _, step, _ in every)
    first = min(every, key=lambda one: one[3], default=None)
    return Watched(
        changes=changed,
        caught=bool(every),
        soon=soon,
        sampled=any(one[0] == "default" for one in news),
        sentence=f"step {first[3]}: {first[2]}: {first[4]}" if first else "",
    )


def measure(pool: Pool, mutants: Sequence[Mutant], progress: Progress) -> dict[str, Watched]:
    """Train the table without a mutant, and with each. Return what Watch saw, by mutant."""
    plain: dict[str, Lines] = {}
    task = progress.add("mutants with Watch", len(mutants))
    for _, record, _ in pool.run([("", _working(None, {}))]):
        plain = {name: _lines(value) for name, value in record.watched.items()}
    found: dict[str, Watched] = {}
    for mutant, record, fate in pool.run((one, _working(one, plain)) for one in mutants):
        # A run that ends the process shows, and Watch has said nothing of it.
        found[mutant.name] = Watched(**record.watched) if record.watched else Watched(changes=bool(fate))
        task.advance(1, mutant.name)
    return found


def _lines(value: Mapping[str, Any]) -> Lines:
    runs = {key: [[(step, did) for step, did in run] for run in runs] for key, runs in value["runs"].items()}
    return Lines(runs, [(a, b, c, d, e) for a, b, c, d, e in value["found"]])


def _working(mutant: Mutant | None, plain: Mapping[str, Lines]) -> Callable[[Writer], Any]:
    """Return what a child does: train the table, with a mutant until Watch has seen it, or all of it without one."""

    def work(write: Writer) -> None:
        attach(Path.cwd())
        if mutant is not None:
            mutant.apply()
        lines: dict[str, Lines] = {}
        seen = Watched()
        chosen = tuple(RUNS) if mutant is None else _OF_CHAPTER.get(mutant.chapter, _USUAL)
        for name in chosen:
            spec = RUNS[name]
            before = read(Path.cwd())
            _train(name, spec)
            lines[name] = _news(before, read(Path.cwd()))
            if mutant is not None:
                now = judge(lines[name], plain.get(name, Lines()))
                seen = now if now.caught or not seen.changes else seen
                if now.caught and now.changes:
                    break
        write("watched", asdict(seen) if mutant is not None else {name: asdict(one) for name, one in lines.items()})

    return work


def _train(name: str, spec: RunSpec) -> None:
    """Train a run of the table. What it raises is no finding of Watch's."""
    from harness.subjects.hf_trainer import HFTrainer

    subject, directory = HFTrainer(), Path.cwd() / name.replace(" ", "-")
    try:
        if spec.resume is None:
            subject.build(spec, directory).train()
        else:
            subject.build(spec.first_leg(), directory).train()
            checkpoint = directory / f"checkpoint-{spec.resume.checkpoint}"
            subject.build(spec.but(resume=None), directory).train(resume_from_checkpoint=str(checkpoint))
    except Exception as error:
        print(name, type(error).__name__, error)


def _news(before: Lines, after: Lines) -> Lines:
    """Return what was written since."""
    runs = {key: runs[len(before.runs.get(key, [])) :] for key, runs in after.runs.items()}
    return Lines({key: left for key, left in runs.items() if left}, after.found[len(before.found) :])


def _letters(sentence: str) -> str:
    return "".join(letter for letter in sentence if not letter.isdigit())


def _first_difference(run: list[tuple[int, str]], others: list[list[tuple[int, str]]]) -> int | None:
    """Return the step at which a run first does something else than every run of the same key; None if one is equal."""
    if not others:
        return run[0][0] if run else None
    latest = -1
    for other in others:
        if run == other:
            return None
        at = next((i for i, (a, b) in enumerate(zip(run, other, strict=False)) if a != b), min(len(run), len(other)))
        step = run[at][0] if at < len(run) else run[-1][0] if run else 0
        latest = max(latest, step)
    return latest
