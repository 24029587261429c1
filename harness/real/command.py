"""`peft-harness train`: trains a real model twice, side by side, and checks what both runs left behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.environment import check_device
from harness.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

#: LoRA as the LoRA paper has it: on the query and value projections.
LORA: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}

#: What QLoRA changes of that and of the run, as its paper has it: a packed base, prepared, and layers computed anew.
QLORA: dict[str, Any] = {
    "lora": {"r": 64, "lora_alpha": 16},
    "model": {"quantization": "nf4", "prepare_for_kbit": True},
    "activation_checkpointing": True,
}

#: Ten times what one would give a long run: the loss has to fall within twenty steps.
LEARNING_RATE = 1e-3

#: At most this many different built-in rows, so that the loss is seen to fall within a few steps.
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
    """Train LoRA r=16 on q_proj and v_proj with two subjects, then once more from the middle checkpoint, and judge.

    model: a directory that save_pretrained wrote, tokenizer included; None is SmolLM2-135M-Instruct. data: JSONL (see
    `harness.real.instructions.FORMATS`); None is the standard library's docstrings. output: a new or empty directory.
    steps: optimizer steps. batch_size: rows a step. length: tokens a row at most. subject: names of one or two
    subjects; one is compared with the reference. threads: torch's intra-op threads, 0 is one for each core.
    qlora: r=64 on the base packed to NF4, with activation checkpointing.

    Returns 0 if every check holds and 1 if one fails. Raises UsageError for bad input, before anything is trained.
    """
    from rich.console import Console

    from harness.processes.imports import import_upstream

    names = _subjects(subject)
    _require(steps >= 2, f"--steps {steps}: at least 2, to resume from the middle")
    _require(batch_size >= 1, f"--batch-size {batch_size}: at least 1")
    _require(length >= 8, f"--length {length}: at least 8 tokens")
    _require(threads >= 0, f"--threads {threads}: 0 (one for each core) or more")
    _require(0 <= seed < 2**32, f"--seed {seed}: from 0 to 4294967295")
    check_device(device)
    # A file of its own: what others print goes elsewhere while this one draws. No markup: paths may hold brackets.
    console = Console(file=sys.stdout, highlight=False, markup=False)
    from harness.real import inputs

    if data is not None and not Path(data).expanduser().is_file():
        raise UsageError(f"--data {data}: no such file")
    target = inputs.output_directory(output)
    directory = None if model is None else inputs.model_directory(model)

    threads = threads or _cores()
    with console.status("importing torch, transformers and peft"):
        import_upstream(threads=threads)
    from harness import subjects
    from harness.spec import LaunchSpec

    judged = [subjects.load(name) for name in names]
    directory = directory or _smollm2(console)
    tokenizer = inputs.tokenizer_of(directory)
    inputs.require_layers(directory, LORA["target_modules"])
    at_most = steps * batch_size if data else min(steps * batch_size, _BUILT_IN_ROWS)
    rows = inputs.rows(data, tokenizer, length, at_most)
    spec = inputs.run_spec(
        directory,
        target / "rows.jsonl",
        rows.encoded,
        LORA,
        LaunchSpec(device=device, threads=threads),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        seed=seed,
    )
    if qlora:
        spec = spec.but(**QLORA)
    for one in judged:
        reason = one.unsupported(spec)
        _require(reason is None, f"subject {one.name!r} does not train this: {reason}")
    from harness.real.comparison import Session

    return Session(console, spec, rows, tokenizer, judged, target).go()


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise UsageError(sentence)


def _subjects(given: Sequence[str]) -> list[str]:
    names = list(given) or ["hf-trainer"]
    if len(names) > 2:
        raise UsageError(f"--subject is given {len(names)} times; two subjects are compared")
    return names if len(names) == 2 else [*names, "hf-trainer" if names == ["reference"] else "reference"]


def _cores() -> int:
    # What this process may use, which in a container is less than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _smollm2(console: Console) -> Path:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from harness.fixtures import smollm2
    from harness.real.progress import kept_quiet

    if smollm2.cached() is not None:
        return smollm2.path()
    lack = smollm2.missing()
    _require(lack is None, str(lack))
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    what = f"dequantising {smollm2.NAME} to float32, once (about half a minute)"
    if not console.is_terminal:
        console.print(what)
    with Progress(*columns, console=console, transient=True) as progress, kept_quiet(None):
        progress.add_task(what, total=None)
        path = smollm2.path()
    console.print(f"{smollm2.NAME} is kept in {path}", soft_wrap=True)
    return path
