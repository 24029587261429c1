"""What a run on a real model looks like: tables for the terminal, a plot, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.real.checks import Check, shorten
from harness.verdict import FAIL, PASS

if TYPE_CHECKING:
    from harness.trace import Trace

_COLOURS = {PASS: "green", FAIL: "red"}


def steps_of(runs: dict[str, Trace]) -> list[dict[str, Any]]:
    """Per step: "step", "loss" and "grad_norm" by label, "seconds" by label, and the "difference" of the two losses.

    Losses and gradient norms (before clipping) are those that were logged; None where nothing was.
    """
    numbers = sorted({step.number for trace in runs.values() for step in trace.steps})
    seconds = {label: {step.number: step.seconds for step in trace.steps} for label, trace in runs.items()}
    rows = []
    for number in numbers:
        loss = {label: trace.losses.get(number) for label, trace in runs.items()}
        known = [value for value in loss.values() if value is not None]
        rows.append(
            {
                "step": number,
                "loss": loss,
                "grad_norm": {label: trace.grad_norms.get(number) for label, trace in runs.items()},
                "seconds": {label: times.get(number) for label, times in seconds.items()},
                "difference": known[0] - known[1] if len(known) == 2 else None,
            }
        )
    return rows


def print_steps(console: Console, rows: list[dict[str, Any]], labels: Sequence[str]) -> None:
    """The table of steps: both losses, both gradient norms, the difference of the losses."""
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
    """A line for each check, with its numbers; what was found against it below."""
    table = Table(box=None, padding=(0, 2), show_header=False)
    for check in checks:
        outcome = check.verdict.outcome
        text = Text(check.detail)
        if check.fails:
            for sentence in map(shorten, check.verdict.seen[:3]):
                text.append("" if sentence == check.detail else f"\n{sentence}", style="red")
        table.add_row(Text(outcome.replace("_", " "), style=_COLOURS.get(outcome, "yellow")), Text(check.name), text)
    console.print(table)


def print_answers(console: Console, answers: list[dict[str, Any]]) -> None:
    """Each question with the answers before and after training."""
    table = Table(box=None, padding=(0, 2), show_header=False)
    for answer in answers:
        held = "" if answer["trained_on"] else " (not in the training rows)"
        table.add_row("asked", Text(f"{answer['question']}{held}", style="bold"))
        for when in ("before", "after"):
            # An untrained model may say anything, escape sequences of the terminal too.
            said = "".join(letter if letter.isprintable() else " " for letter in answer[when] or "nothing")
            table.add_row(when, Text(" ".join(said.split())))
    console.print(table)


def plot(rows: list[dict[str, Any]], labels: Sequence[str], title: str, path: Path) -> bool:
    """Both loss curves as a PNG. False, and no file, where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return False
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Equal curves lie on each other: the first is wide and pale, so that both are seen.
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
    """A value as indented JSON; numbers that JSON has no word for (NaN, infinity) as text."""
    path.write_text(json.dumps(_finite(value), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    return value


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
