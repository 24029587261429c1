"""Show runs on a real model: tables for the terminal, a plot, and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.files import write_whole
from harness.real.checks import Check, shorten
from harness.verdict import FAIL, PASS, spelled

if TYPE_CHECKING:
    from harness.trace import Trace

_COLOURS = {PASS: "green", FAIL: "red"}


def steps_of(runs: dict[str, Trace]) -> list[dict[str, Any]]:
    """Return a dict for each step, as result.json has it.

    - "step": the global step
    - "loss", "grad_norm": label -> what was logged, None if nothing was; the norm is that before clipping
    - "seconds": label -> seconds of the step
    - "difference": of the two losses, None if one is missing
    """
    numbers = sorted({step.number for trace in runs.values() for step in trace.steps})
    seconds = {label: {step.number: step.seconds for step in trace.steps} for label, trace in runs.items()}
    rows = []
    for number in numbers:
        loss = {label: trace.losses.get(number) for label, trace in runs.items()}
        logged = [value for value in loss.values() if value is not None]
        rows.append(
            {
                "step": number,
                "loss": loss,
                "grad_norm": {label: trace.grad_norms.get(number) for label, trace in runs.items()},
                "seconds": {label: times.get(number) for label, times in seconds.items()},
                "difference": logged[0] - logged[1] if len(logged) == 2 else None,
            }
        )
    return rows


def print_steps(console: Console, rows: list[dict[str, Any]], labels: Sequence[str]) -> None:
    """Print the table of steps: both losses, both gradient norms, and the difference of the losses."""
    table = Table(box=None, padding=(0, 2))
    for heading in ["step", *[f"loss\n{label}" for label in labels], *[f"grad_norm\n{label}" for label in labels]]:
        table.add_column(heading, justify="right")
    table.add_column("difference\nof the losses", justify="right")
    for row in rows:
        values = [row[what][label] for what in ("loss", "grad_norm") for label in labels]
        gap = row["difference"]
        table.add_row(str(row["step"]), *map(_number, values), "" if gap is None else "0" if gap == 0 else f"{gap:.3g}")
    console.print(table)


def print_checks(console: Console, checks: list[Check]) -> None:
    """Print a line for each check with its numbers. Below one that fails, or was not judged, are three findings."""
    table = Table(box=None, padding=(0, 2), show_header=False)
    for check in checks:
        outcome = check.verdict.outcome
        text = Text(check.detail)
        if check.fails or check.undecided:
            style = _COLOURS.get(outcome, "yellow")
            for sentence in map(shorten, check.verdict.seen[:3]):
                text.append("" if sentence in check.detail else f"\n{sentence}", style=style)
        table.add_row(Text(outcome.replace("_", " "), style=_COLOURS.get(outcome, "yellow")), Text(check.name), text)
    console.print(table)


def print_answers(console: Console, answers: list[dict[str, Any]]) -> None:
    """Print each question with the answers before and after training."""
    table = Table(box=None, padding=(0, 2), show_header=False)
    for answer in answers:
        held_out = "" if answer["trained_on"] else " (not in the training rows)"
        table.add_row("asked", Text(f"{answer['question']}{held_out}", style="bold"))
        for when in ("before", "after"):
            # An untrained model may produce anything, even escape sequences of the terminal.
            text = "".join(letter if letter.isprintable() else " " for letter in answer[when] or "nothing")
            table.add_row(when, Text(" ".join(text.split())))
    console.print(table)


def plot(rows: list[dict[str, Any]], labels: Sequence[str], title: str, path: Path) -> bool:
    """Write both loss curves as a PNG and return True. If matplotlib is not installed, return False and write nothing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return False
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Equal curves lie on top of each other. The first one is wide and pale, so that both can be seen.
    styles: list[dict[str, Any]] = [
        {"color": "#7fb2e5", "linewidth": 7, "solid_capstyle": "round"},
        {"color": "#b3261e", "linewidth": 1.4, "marker": "o", "markersize": 3.5},
    ]
    for label, style in zip(labels, styles, strict=False):
        points = [(row["step"], row["loss"][label]) for row in rows if row["loss"][label] is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], label=label, **style)
    axes.set(xlabel="optimizer step", ylabel="training loss (mean over answer tokens, nats)", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
    return True


def write_json(value: Any, path: Path) -> None:
    """Write a value as indented JSON. NaN and infinity, which JSON does not have, become text. It is there whole or not."""
    write_whole(path, json.dumps(spelled(value), indent=1, ensure_ascii=False) + "\n")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
