"""The command `peft-harness speed`, with --ranks and with --rates."""

from __future__ import annotations

import importlib.util
import json as encoding
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import subjects
from harness.environment import check_device, describe, gpus
from harness.errors import UsageError
from harness.files import Attempts, write_whole
from harness.progress import Progress, screen
from harness.subjects.launch_arguments import STRATEGIES
from harness.throughput import advise as advising
from harness.throughput import rates as error_rates
from harness.throughput import scaling as spreading
from harness.throughput import show
from harness.throughput import speed as measuring
from harness.throughput.shapes import Shape, chosen

#: The most ranks that --ranks starts on one machine. Each takes about a GiB of memory.
MOST_RANKS = 64

#: Seconds of timing for each slowdown of --rates.
SECONDS = 90.0


def speed(
    subject: str,
    device: str,
    shapes: list[Shape],
    seconds: float | None,
    json: Path | None,
    plot: Path | None,
    kernels: bool = False,
    beside: list[str] | None = None,
    fp8: bool = False,
) -> int:
    """Time the subject beside the yardsticks, and print a table.

    - shapes: what to time.
    - seconds: of timing for each pair of subject and yardstick; None for the default.
    - json, plot: files to write.
    - kernels: whether to show which kernels a step runs. Then the plot has their shares.
    - beside: names of yardsticks (`speed.YARDSTICKS`); None for the usual ones.
    - fp8: whether the yardstick with a base in FP8 is added.

    Returns 0, or 1 if the first losses show that a yardstick does not compute what the Trainer computes. Raises UsageError if
    the subject cannot be timed.
    """
    check_device(device)
    subjects.load(subject)
    yardsticks = measuring.yardsticks(device, beside or [], fp8)
    with _progress("speed") as progress:
        each = (
            measured
            for shape in shapes
            for measured in measuring.measure(shape, device, subject, seconds, progress, kernels, yardsticks)
        )
        measured, written = _collect(each, json, lambda so_far: measuring.to_report(so_far, device, subject))
    console = screen()
    show.table(console, measured)
    if kernels:
        show.kernels(console, measured)
    differing = [sentence for shape in measured for sentence in measuring.differing_losses(shape)]
    for sentence in differing:
        console.print(sentence, style="bold red")
    if plot is not None:
        (show.kernel_bars if kernels else show.bars)(measured, plot)
    written.require_last()
    return 1 if differing else 0


def advice(subject: str, device: str, shapes: list[Shape], seconds: float | None, json: Path | None) -> int:
    """Try arguments that may make runs faster, and print what each brought. Returns 0.

    - shapes: the runs. - seconds: of timing for each change; None for the default. - json: a file to write.

    Raises UsageError if the run as it is cannot be timed.
    """
    check_device(device)
    subjects.load(subject)
    with _progress("speed --advise") as progress:
        each = (made for shape in shapes for made in advising.advise(shape, device, subject, seconds, progress))
        measured, written = _collect(each, json, lambda so_far: advising.to_report(so_far, device, subject))
    show.advice(screen(), measured)
    written.require_last()
    return 0


def scaling(
    subject: str,
    device: str,
    shapes: list[str],
    count: int,
    strategies: tuple[str, ...],
    json: Path | None,
    plot: Path | None,
) -> int:
    """Time the subject in one process and in several ranks, and print a table.

    - count: the number of ranks.
    - strategies: how the ranks share the work; empty for DDP and FSDP2.

    Returns 0, or 2 if a launch could not be timed. Raises UsageError for a wrong number of ranks, an unknown strategy, or
    fewer GPUs than ranks.
    """
    if not 2 <= count <= MOST_RANKS:
        raise UsageError(f"--ranks {count}: expected 2 or more, up to {MOST_RANKS}; one process is timed in any case")
    for name in strategies:
        # Ranks that split the layers train the same rows, so that their tokens cannot be added.
        if name not in STRATEGIES or name in ("single", "tp"):
            known = ", ".join(strategy for strategy in STRATEGIES if strategy not in ("single", "tp"))
            raise UsageError(f"--strategy {name}: known are {known}")
    check_device(device)
    if device == "cuda" and len(gpus()) < count:
        raise UsageError(f"--ranks {count}: there are {len(gpus())} GPUs")
    subjects.load(subject)
    shapes_to_time = chosen(shapes, device)
    with _progress("speed") as progress:
        each = (
            scaled
            for shape in shapes_to_time
            for scaled in spreading.measure(shape, device, subject, count, strategies or spreading.STRATEGIES, progress)
        )
        measured, written = _collect(each, json, lambda so_far: spreading.to_report(so_far, device, subject))
    show.scaling(screen(), measured)
    if plot is not None:
        show.scaled_bars(measured, plot)
    written.require_last()
    return 2 if any(spread.refused for shape in measured for spread in shape.spreads) else 0


def rates(device: str, shapes: list[str], seconds: float | None, json: Path | None, plot: Path | None) -> int:
    """Measure how often the judgement is wrong, at one shape, and print a table. Returns 0."""
    if importlib.util.find_spec("scipy") is None:
        raise UsageError(
            "speed --rates: scipy is not installed, and its Mann-Whitney test is compared with; pip install scipy"
        )
    check_device(device)
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
    with _progress("speed --rates") as progress:
        each = error_rates.measure(shape, device, seconds, progress)
        measured, written = _collect(each, json, lambda so_far: body | {"rates": [rate.to_json() for rate in so_far]})
    show.rates(screen(), measured, margin, budget)
    if plot is not None:
        show.curves(measured, margin, plot)
    written.require_last()
    return 0


def _collect(
    each: Iterable[Any], json: Path | None, report: Callable[[list[Any]], dict[str, Any]]
) -> tuple[list[Any], Attempts]:
    """Return all objects that are yielded. An object that is yielded again, with more in it, is in the list once.

    The report is written after each, so that an interrupted command leaves what it has measured: compiling alone takes
    minutes. The second value says whether it could be written.
    """
    measured: list[Any] = []
    written = Attempts()
    for one in each:
        if not measured or measured[-1] is not one:
            measured.append(one)
        if json is not None:
            with written.attempt():
                write_whole(json, encoding.dumps(report(measured), indent=1) + "\n")
    return measured, written


@contextmanager
def _progress(what: str) -> Iterator[Callable[[str], None]]:
    """Show a job's progress. The value is a function that is called with words about what is done now."""
    with Progress(None, what) as progress:
        yield lambda words: progress.update(text=words)
