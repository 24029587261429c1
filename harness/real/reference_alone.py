"""`python -m harness.reference`: train with the reference alone, and print a row for each logged step."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from harness import ending, trust
from harness.errors import UsageError
from harness.spec import RunSpec

if TYPE_CHECKING:
    from rich.table import Table

    from harness.reference.trainer import ReferenceTrainer

#: Columns of the table: its heading, and the key of the log entry.
COLUMNS = {
    "step": "step",
    "epoch": "epoch",
    "loss": "loss",
    "gradient norm": "grad_norm",
    "learning rate": "learning_rate",
    "evaluation loss": "eval_loss",
}


class _Parser(argparse.ArgumentParser):
    """Raises UsageError instead of ending the process, so that a wrong option is one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main(given: list[str] | None = None) -> int:
    """Train a spec and print its steps. Return 0, or 2 after one sentence on stderr if that could not be done.

    - given: the command line's arguments; None: those of this process
    """
    lost = ending.open_streams("python -m harness.reference")
    if lost:
        return ending.say(lost)
    try:
        chosen = _parser().parse_args(given)
    except UsageError as error:
        return ending.ended_by(error)
    try:
        spec = _spec(chosen)
        with tempfile.TemporaryDirectory() as scratch:
            _train(spec, chosen.output or Path(scratch), chosen.resume, save_adapter=chosen.output is not None)
        return ending.ended(0)
    except BaseException as error:
        return ending.ended_by(error, [chosen.output] if chosen.output else [])


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m harness.reference", description="Train a LoRA adapter with the reference.")
    parser.add_argument("--spec", type=Path, help="a run spec as JSON; default: ten steps of the smallest run")
    parser.add_argument("--trust-code", action="store_true", help="run code that the spec names; read it first")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the spec's")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), help="of the base model")
    parser.add_argument("--resume", type=Path, metavar="CHECKPOINT", help="a checkpoint directory, Trainer's or ours")
    parser.add_argument("--output", type=Path, help="a new or empty directory for checkpoints and the adapter")
    return parser


def _spec(chosen: argparse.Namespace) -> RunSpec:
    """Return the spec that the options describe."""
    spec = RunSpec.load(chosen.spec) if chosen.spec else RunSpec()
    if spec.resume is not None:
        raise UsageError(f"{chosen.spec}: resume is not read here; name the checkpoint with --resume")
    trust.check(spec, str(chosen.spec), chosen.trust_code)
    return spec.but(
        model={"dtype": chosen.dtype} if chosen.dtype else None,
        launch={"device": chosen.device} if chosen.device else None,
    )


def _train(spec: RunSpec, output: Path, resume: Path | None, save_adapter: bool) -> None:
    """Train, print the table and the totals, and write the adapter if asked to.

    - output: where checkpoints go; it must be new or empty
    - resume: the checkpoint to go on from, None: from the start
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    from harness.reference import checkpoint
    from harness.subjects import reference

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"--output {output}: not an empty directory, and nothing is overwritten")
    if spec.launch.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no CUDA device here")
    if spec.launch.threads:
        torch.set_num_threads(spec.launch.threads)
    console = Console(highlight=False, markup=False, emoji=False)
    table = Table(*COLUMNS)
    status = console.status("training")

    def report(event: str, trainer: ReferenceTrainer) -> None:
        status.update(f"step {trainer.state.global_step} of {trainer.state.max_steps}")
        if event == "log":
            _add_row(table, trainer.state.log_history[-1])

    trainer = reference.build(spec, output, report)
    try:
        with status:
            result = reference.train(trainer, spec, resume)
    except checkpoint.CheckpointError as error:
        raise UsageError(f"--resume: {error}") from None
    console.print(table)
    seconds = result.metrics["train_runtime"]
    console.print(f"{result.global_step} steps, mean loss {result.training_loss:.6f}, {seconds:.2f} s")
    if save_adapter:
        checkpoint.save_adapter(output, trainer.model)
        console.print(f"adapter and checkpoints: {output}", soft_wrap=True)


def _add_row(table: Table, entry: dict[str, Any]) -> None:
    """Add a log entry of training or of evaluation. The last entry, with the totals, has neither loss and is left out."""
    if "loss" not in entry and "eval_loss" not in entry:
        return
    step, *others = (entry.get(key) for key in COLUMNS.values())
    table.add_row(str(step), *("" if value is None else f"{value:.6g}" for value in others))
