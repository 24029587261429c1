"""`peft-harness train`: train a real model with two trainers, resume one run, and check what they left behind.

1. `train` checks the options, loads model, tokenizer and rows, and makes the spec.
2. `harness.real.comparison.Comparison` does the three runs, judges them and writes the files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import lacking, progress
from harness.environment import check_device
from harness.errors import UsageError
from harness.reading import shown
from harness.user_code import guarded

if TYPE_CHECKING:
    from rich.console import Console

    from harness.real.inputs import Rows
    from harness.spec import LaunchSpec, RunSpec
    from harness.subjects import Subject

#: LoRA as in the LoRA paper: on the query and value projections.
LORA: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}

#: What --qlora changes, as in the QLoRA paper: a packed and prepared base, and activation checkpointing.
QLORA: dict[str, Any] = {
    "lora": {"r": 64, "lora_alpha": 16},
    "model": {"quantization": "nf4", "prepare_for_kbit": True},
    "activation_checkpointing": True,
}

#: Ten times the usual rate of a long run, so that the loss falls within twenty steps.
LEARNING_RATE = 1e-3

#: Limits of options: a mistyped number would fill the memory, or never end. The longest of known models have ten million
#: positions. More threads than cores are slower.
_MOST_STEPS, _MOST_ROWS, _MOST_TOKENS, _MOST_THREADS = 10_000, 65_536, 2**24, 4

#: The most built-in rows that are used. They repeat after a few steps, so that the loss is seen to fall.
_BUILT_IN_ROWS = 40


def train(
    *,
    model: str | Path | None = None,
    data: str | Path | None = None,
    output: str | Path | None = None,
    steps: int = 16,
    batch_size: int = 4,
    length: int = 80,
    subject: Sequence[str] = (),
    device: str = "cpu",
    threads: int = 0,
    seed: int = 42,
    qlora: bool = False,
) -> int:
    """Train LoRA with two subjects, train the first once more from its middle checkpoint, and judge all three runs.

    - model: a directory that save_pretrained wrote, tokenizer included; None: SmolLM2-135M-Instruct
    - data: a JSONL file (see `harness.real.instructions.FORMATS`); None: docstrings of the standard library
    - output: a new or empty directory; None: see `harness.real.inputs.output_directory`
    - steps: optimizer steps
    - batch_size: rows per step
    - length: the most tokens of a row; longer rows are cut
    - subject: names of one or two subjects; one alone is compared with the reference
    - device: "cpu" or "cuda"
    - threads: torch's intra-op threads; 0: one for each core
    - seed: of the training run and of the adapter
    - qlora: pack the base to NF4, with r=64 and activation checkpointing

    Returns 0 if every check was judged and holds, 1 if one fails, 3 if one was not judged: see harness/real/README.md for
    the one that need not be. Raises UsageError for wrong input, before anything is trained or written.
    """
    from harness.processes.imports import import_upstream

    names = _subject_names(subject)
    _check_numbers(steps, batch_size, length, threads, seed)
    check_device(device)
    # It has the present stdout as its file. While runs train, sys.stdout is a log file, and this console goes on.
    # No markup: paths may contain brackets.
    console = progress.screen(sys.stdout, markup=False)
    from harness.real import inputs

    if data is not None:
        inputs.data_file(data)
    target = inputs.output_directory(output)
    directory = None if model is None else inputs.model_directory(model)

    threads = threads or _cores()
    with progress.Progress(None, "importing torch, transformers and peft"):
        import_upstream(threads=threads)
    from harness import subjects
    from harness.spec import LaunchSpec

    if qlora and (lack := lacking.quantization()) is not None:
        raise UsageError(f"--qlora: {lack}")
    judged = [subjects.load(name) for name in names]
    directory = directory or _smollm2(console)
    tokenizer = inputs.tokenizer_of(directory)
    inputs.require_layers(directory, LORA["target_modules"])
    rows = inputs.rows(data, tokenizer, length, _row_count(steps, batch_size, built_in=data is None))
    launch = LaunchSpec(device=device, threads=threads)
    batches = {"max_steps": steps, "per_device_train_batch_size": batch_size}
    spec = _run_spec(directory, target, rows, launch, qlora, seed=seed, **batches)
    _check_supported(judged, spec)
    from harness.real.comparison import Comparison

    base = _base(spec)
    inputs.require_room(base, rows.encoded, str(directory))
    comparison = Comparison(console, spec, rows, tokenizer, base, judged, target)
    del base  # so that it can be freed while the runs build their own
    return comparison.run()


def _subject_names(given: Sequence[str]) -> list[str]:
    """Return the names of the two subjects to compare."""
    if len(given) > 2:
        raise UsageError(f"--subject is given {len(given)} times; two subjects are compared")
    if len(given) == 2:
        return list(given)
    first = given[0] if given else "hf-trainer"
    return [first, "hf-trainer" if first == "reference" else "reference"]


def _check_numbers(steps: int, batch_size: int, length: int, threads: int, seed: int) -> None:
    """Raise UsageError for a number out of range."""
    most = _MOST_THREADS * _cores()
    _require(steps >= 2, f"--steps {shown(steps)}: at least 2, to resume from the middle")
    _require(steps <= _MOST_STEPS, f"--steps {shown(steps)}: at most {_MOST_STEPS}, whose gradients are kept in memory")
    _require(1 <= batch_size <= _MOST_ROWS, f"--batch-size {shown(batch_size)}: from 1 to {_MOST_ROWS}")
    _require(length >= 8, f"--length {shown(length)}: at least 8 tokens")
    _require(length <= _MOST_TOKENS, f"--length {shown(length)}: at most {_MOST_TOKENS} tokens")
    _require(0 <= threads <= most, f"--threads {shown(threads)}: from 0 (one for each core) to {most}")
    _require(0 <= seed < 2**32, f"--seed {shown(seed)}: from 0 to 4294967295")


def _row_count(steps: int, batch_size: int, built_in: bool) -> int:
    """Return how many rows the run can use."""
    rows = steps * batch_size
    return min(rows, _BUILT_IN_ROWS) if built_in else rows


def _run_spec(model: Path, target: Path, rows: Rows, launch: LaunchSpec, qlora: bool, **arguments: Any) -> RunSpec:
    """Return the spec of the whole run.

    - target: where its rows will lie, in rows.jsonl
    - arguments: TrainingArguments
    """
    from harness.real import inputs

    path = target / "rows.jsonl"
    spec = inputs.run_spec(model, path, rows.encoded, LORA, launch, learning_rate=LEARNING_RATE, **arguments)
    return spec.but(**QLORA) if qlora else spec


def _check_supported(judged: Sequence[Subject], spec: RunSpec) -> None:
    """Raise UsageError if a subject cannot train the spec."""
    for subject in judged:
        with guarded(f"subject {subject.name!r} does not say whether it trains this"):
            reason = subject.unsupported(spec)
        _require(reason is None, f"subject {subject.name!r} does not train this: {reason}")


def _base(spec: RunSpec) -> Any:
    """Return the base model of a spec. UsageError if it cannot be loaded, or its weights are no numbers."""
    from harness.fixtures import models
    from harness.real.progress import output_redirected

    with progress.Progress(None, "loading the model"), output_redirected(None):
        return models.build(spec.model)


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise UsageError(sentence)


def _cores() -> int:
    # The cores that this process may use. In a container they are fewer than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _smollm2(console: Console) -> Path:
    """Return the directory of SmolLM2-135M-Instruct, which is made on the first call. UsageError if packages are missing."""
    from harness.fixtures import smollm2
    from harness.real.progress import output_redirected

    if smollm2.cached() is not None:
        return smollm2.path()
    missing = smollm2.missing()
    _require(missing is None, str(missing))
    task = f"dequantising {smollm2.NAME} to float32, once (about half a minute)"
    with progress.Progress(None, task), output_redirected(None):
        path = smollm2.path()
    console.print(f"{smollm2.NAME} is cached in {path}", soft_wrap=True)
    return path
