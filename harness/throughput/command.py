"""`peft-harness speed`."""

from __future__ import annotations

import importlib.util
import json as encoding
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from harness import subjects
from harness.environment import check_device, describe, gpus
from harness.errors import UsageError
from harness.files import write_whole
from harness.subjects.launch_arguments import STRATEGIES
from harness.throughput import rates as error_rates
from harness.throughput import scaling as spreading
from harness.throughput import show
from harness.throughput import speed as measuring
from harness.throughput.shapes import chosen

#: Seconds of timing for each slowdown of --rates.
SECONDS = 90.0


def speed(
    subject: str, device: str, shapes: list[str], seconds: float | None, json: Path | None, plot: Path | None
) -> int:
    """Measure and tell. Returns 0, or 1 where a yardstick does not compute what the Trainer computes."""
    _check(device, json, plot)
    subjects.load(subject)
    wanted = chosen(shapes, device)
    with _progress() as told:
        each = (one for shape in wanted for one in measuring.measure(shape, device, subject, seconds, told))
        measured = _kept(each, json, lambda so_far: measuring.to_report(so_far, device, subject))
    screen = _screen()
    show.table(screen, measured)
    odd = [sentence for one in measured for sentence in measuring.odd_losses(one)]
    for sentence in odd:
        screen.print(sentence, style="bold red")
    if plot is not None:
        show.bars(measured, plot)
    return 1 if odd else 0


def scaling(
    subject: str,
    device: str,
    shapes: list[str],
    count: int,
    strategies: tuple[str, ...],
    json: Path | None,
    plot: Path | None,
) -> int:
    """Measure what several processes make of speed and memory. Returns 0, or 2 where a launch could not be timed."""
    if count < 2:
        raise UsageError(f"--ranks {count}: expected 2 or more, beside the one process that they are compared with")
    for name in strategies:
        if name not in STRATEGIES or name == "single":
            raise UsageError(f"--strategy {name}: known are {', '.join(one for one in STRATEGIES if one != 'single')}")
    _check(device, json, plot)
    if device == "cuda" and len(gpus()) < count:
        raise UsageError(f"--ranks {count}: there are {len(gpus())} GPUs")
    subjects.load(subject)
    wanted = chosen(shapes, device)
    with _progress() as told:
        each = (
            spread
            for shape in wanted
            for spread in spreading.measure(shape, device, subject, count, strategies or spreading.STRATEGIES, told)
        )
        measured = _kept(each, json, lambda so_far: spreading.to_report(so_far, device, subject))
    show.scaling(_screen(), measured)
    if plot is not None:
        show.scaled_bars(measured, plot)
    return 2 if any(one.refused for shape in measured for one in shape.spreads) else 0


def rates(device: str, shapes: list[str], seconds: float | None, json: Path | None, plot: Path | None) -> int:
    """Measure the error rates of the judgement, at one shape. Returns 0."""
    if importlib.util.find_spec("scipy") is None:
        raise UsageError(
            "speed --rates: scipy is not installed, whose Mann-Whitney test it compares with; pip install scipy"
        )
    _check(device, json, plot)
    (shape,) = chosen(shapes[:1], device)
    seconds = seconds or SECONDS
    margin, budget = error_rates.GOAL[device], error_rates.trial_seconds(seconds)
    body: dict[str, Any] = {
        "schema_version": measuring.SCHEMA_VERSION,
        "kind": "rates",
        "environment": describe(device),
        "shape": shape.name,
        "margin": margin,
        "budget_seconds": budget,
    }
    with _progress() as told:
        each = error_rates.measure(shape, device, seconds, told)
        measured = _kept(each, json, lambda so_far: body | {"rates": [one.to_json() for one in so_far]})
    show.rates(_screen(), measured, margin, budget)
    if plot is not None:
        show.curves(measured, margin, plot)
    return 0


def _kept(each: Iterable[Any], json: Path | None, report: Callable[[list[Any]], dict[str, Any]]) -> list[Any]:
    """All that is yielded, the same object once. The report is written anew after each.

    What was measured is kept if the rest is interrupted: compiling alone takes minutes.
    """
    measured: list[Any] = []
    for one in each:
        if not measured or measured[-1] is not one:
            measured.append(one)
        if json is not None:
            write_whole(json, encoding.dumps(report(measured), indent=1) + "\n")
    return measured


def _screen() -> Console:
    screen = Console()
    return screen if screen.is_terminal else Console(width=160)


def _check(device: str, *files: Path | None) -> None:
    check_device(device)
    for file in files:
        if file is not None and file.is_dir():
            raise UsageError(f"{file}: is a directory; name a file")


@contextmanager
def _progress() -> Iterator[Any]:
    console = Console(stderr=True)
    with console.status("starting") as status:
        yield lambda words: status.update(words) if console.is_terminal else console.print(words, highlight=False)
