"""Show figures of throughput to people: tables and plots."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.files import write_figure
from harness.throughput.advise import Advice, Tried
from harness.throughput.judgement import percent
from harness.throughput.kernels import by_kind
from harness.throughput.rates import Rates
from harness.throughput.scaling import Scaled, Spread
from harness.throughput.shapes import Shape
from harness.throughput.speed import Measured, Row


def table(console: Console, measured: list[Measured]) -> None:
    """Print a line for each side at each shape."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    numbers = (
        "tokens/s",
        "ms a step",
        "the Trainer is (99 % interval)",
        "peak GiB",
        "TFLOP/s",
        "of ceiling",
        "loss",
        "from float32",
    )
    for name in ("shape", "", *numbers):
        shown.add_column(name, justify="right" if name in numbers else "left", no_wrap=True)
    for shape in measured:
        for index, row in enumerate(shape.rows):
            shown.add_row(_title(shape.shape) if index == 0 else "", row.name, *_cells(shape, row))
        assert shape.ceiling is not None
        bound = f"{shape.bound:,.0f}" if shape.flops else "-"
        limit = f"{shape.ceiling.flops / 1e12:,.2f}"
        shown.add_row("", "what the device allows", bound, "", "", "", limit, "", "", "")
    console.print(shown)
    refused = {f"{row.name}: {row.refused}" for shape in measured for row in shape.rows if row.refused}
    for shape in measured:
        if shape.float32_refused:
            sentence = f"{shape.shape.name}: not compared with float32: {shape.float32_refused}"
            console.print(sentence, style="dim", highlight=False)
    for sentence in sorted(refused):
        console.print(f"not timed: {sentence}", style="dim", highlight=False)


def _title(shape: Shape) -> str:
    return f"{shape.name} ({shape.rows} x {shape.length})"


def _cells(shape: Measured, row: Row) -> list[str]:
    if row.refused:
        return ["-"] * 8
    return [
        f"{shape.tokens(row):,.0f}",
        f"{1e3 * row.seconds:,.2f}",
        row.overhead.describe().replace("99 % interval: ", "") if row.overhead else "",
        f"{row.peak_bytes / 2**30:.2f}",
        f"{shape.flops / row.seconds / 1e12:,.3f}",
        f"{shape.share(row):.1%}",
        "" if row.loss is None else f"{row.loss:.5f}",
        "?" if (away := shape.from_float32(row)) is None else f"{away:.2g}{_remark(shape, row)}",
    ]


def _remark(shape: Measured, row: Row) -> str:
    """Return what is to be said of a side's distance from float32."""
    if row.name not in shape.bounds:
        return " (farther)" * shape.farther(row)
    bound = shape.bounds[row.name]
    return " (no bound is known)" if bound is None else f" (at most {bound:.2g})"


def kernels(console: Console, measured: list[Measured]) -> None:
    """Print where a step's time goes: for each side the share of each kind of kernel, and the longest kernels."""
    for shape in measured:
        shown = Table(box=None, pad_edge=False, header_style="bold")
        rows = [row for row in shape.rows if row.kernels]
        if not rows:
            continue
        kinds = list(dict.fromkeys(kind for row in rows for kind in by_kind(row.kernels)))
        for name in (f"{_title(shape.shape)}: a step's kernels", *(row.name for row in rows)):
            shown.add_column(name, justify="right" if shown.columns else "left", no_wrap=True)
        for kind in kinds:
            shown.add_row(kind, *(_share(row, kind) for row in rows))
        totals = [sum(kernel.seconds for kernel in row.kernels) for row in rows]
        shown.add_row("together", *(f"{1e3 * total:,.2f} ms" for total in totals))
        console.print(shown)


def _share(row: Row, kind: str) -> str:
    seconds = by_kind(row.kernels)
    spent = seconds.get(kind, 0.0)
    return f"{1e3 * spent:,.2f} ms {spent / sum(seconds.values()):6.1%}"


def advice(console: Console, advices: list[Advice]) -> None:
    """Print what each change of a run brought, and name the best."""
    for one in advices:
        shown = Table(box=None, pad_edge=False, header_style="bold")
        numbers = ("tokens/s", "as it is takes longer by (99 % interval)", "peak GiB", "first twelve losses")
        for name in (_title(one.shape), *numbers):
            shown.add_column(name, justify="left" if name not in numbers else "right", no_wrap=True)
        if one.tried and math.isfinite(one.seconds):
            shown.add_row("as it is", f"{one.shape.tokens / one.seconds:,.0f}", "", f"{one.peak_bytes / 2**30:.2f}", "")
        for tried in one.tried:
            if tried.gain is not None:
                shown.add_row(tried.words, *_tried(one, tried))
        console.print(shown)
        for tried in one.tried:
            if tried.refused:
                console.print(f"not tried: {tried.words}: {tried.refused}", style="dim", highlight=False)
        if one.best:
            console.print(f"faster for sure, the best first: {'; '.join(tried.words for tried in one.best)}")
        else:
            console.print("no change makes this run surely faster")


def _tried(advice: Advice, tried: Tried) -> list[str]:
    assert tried.gain is not None
    low, high = tried.gain.low, tried.gain.high
    equal = "the same bits" if tried.apart == 0 else f"mean differs by {tried.apart:.1e} of it"
    return [
        f"{advice.shape.tokens / tried.seconds:,.0f}",
        f"{tried.gain.estimate:+.1%} ({low:+.1%} to {high:+.1%})",
        f"{tried.peak_bytes / 2**30:.2f}",
        equal if math.isfinite(tried.apart) else "not known",
    ]


def scaling(console: Console, measured: list[Scaled]) -> None:
    """Print a line for each launch at each shape."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    words = ("shape, of each rank", "launch")
    numbers = ("tokens/s", "ms a step", "quartiles", "efficiency", "GiB of each rank", "collectives", "MB of them")
    for name in (*words, *numbers):
        shown.add_column(name, justify="left" if name in words else "right", no_wrap=True)
    for scaled in measured:
        for index, spread in enumerate(scaled.spreads):
            title = _title(scaled.shape) if index == 0 else ""
            shown.add_row(title, _launch(spread.strategy, spread.ranks), *_scaled_cells(scaled, spread))
    console.print(shown)
    for scaled in measured:
        for spread in scaled.spreads:
            if spread.refused:
                sentence = f"not timed: {scaled.shape.name}, {spread.strategy}: {spread.refused}"
                console.print(sentence, style="dim", highlight=False)


def _launch(strategy: str, ranks: int) -> str:
    return f"{strategy} x {ranks}" if ranks > 1 else "one process"


def _scaled_cells(scaled: Scaled, spread: Spread) -> list[str]:
    if spread.refused:
        return ["-"] * 8
    low, high = spread.middle
    memory = [f"{peak / 2**30:.2f}" for peak in spread.peak_bytes]
    return [
        f"{scaled.tokens(spread):,.0f}",
        f"{1e3 * spread.seconds:,.2f}",
        f"{1e3 * low:,.2f} to {1e3 * high:,.2f}",
        f"{scaled.efficiency(spread):.1%}" if spread.ranks > 1 else "",
        ", ".join(memory) if len(set(memory)) > 1 else memory[0],
        f"{spread.collectives}" if spread.ranks > 1 else "",
        f"{spread.collective_bytes / 1e6:,.2f}" if spread.ranks > 1 else "",
    ]


def rates(console: Console, measured: list[Rates], margin: float, budget: float) -> None:
    """Print how often each rule says "slower", for each slowdown that was put in."""
    rules = list(measured[0].slower)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("slower by", "measured", *rules, "undecided", "median s", "sd of A B B A"):
        shown.add_column(name, justify="right")
    for rate in measured:
        shown.add_row(
            f"{rate.share:.1%}" if rate.share else "equal sides",
            f"{percent(rate.came_to)} {'faster' if rate.came_to < 0 else 'slower'}",
            *[f"{rate.slower[rule]:.1%}" for rule in rules],
            f"{rate.unclear:.1%}",
            f"{rate.seconds:.0f}",
            f"{rate.spread:.1%}",
        )
    console.print(
        f'how often each rule says "slower" (margin {margin:.1%}, at most {budget:.0f} s, {measured[0].trials} trials each)'
    )
    console.print(shown)


def bars(measured: list[Measured], path: Path) -> None:
    """Draw the tokens a second of each side at each shape."""
    plt = _matplotlib()
    figure, axes = plt.subplots(figsize=(1.8 + 2.2 * len(measured), 4.5), layout="constrained")
    names = list(dict.fromkeys(row.name for one in measured for row in one.rows))
    width = 0.8 / len(names)
    for position, name in enumerate(names):
        rows = [next((row for row in one.rows if row.name == name), None) for one in measured]
        speeds = [one.tokens(row) if row and not row.refused else 0.0 for one, row in zip(measured, rows, strict=True)]
        drawn = axes.bar([x + position * width for x in range(len(measured))], speeds, width, label=name)
        axes.bar_label(
            drawn, [f"{value:,.0f}" if value else "-" for value in speeds], fontsize=7, rotation=90, padding=3
        )
    axes.set_yscale("log")
    axes.margins(y=0.25)
    axes.set_xticks([x + 0.4 - width / 2 for x in range(len(measured))], [one.shape.name for one in measured])
    axes.set_ylabel("tokens a second")
    axes.legend(fontsize=8)
    write_figure(path, figure)


def kernel_bars(measured: list[Measured], path: Path) -> None:
    """Draw, for each side at each shape, how long a step is in each kind of kernel."""
    plt = _matplotlib()
    sides = [
        (f"{one.shape.name}\n{row.name}", by_kind(row.kernels)) for one in measured for row in one.rows if row.kernels
    ]
    figure, axes = plt.subplots(figsize=(8.0, 1.6 + 0.5 * len(sides)), layout="constrained")
    left = [0.0] * len(sides)
    for kind in dict.fromkeys(kind for _, seconds in sides for kind in seconds):
        spent = [1e3 * seconds.get(kind, 0.0) for _, seconds in sides]
        axes.barh(range(len(sides)), spent, left=left, label=kind)
        left = [total + more for total, more in zip(left, spent, strict=True)]
    axes.set_yticks(range(len(sides)), [name for name, _ in sides])
    axes.invert_yaxis()
    axes.set_xlabel("ms of a step")
    figure.legend(fontsize=8, loc="outside upper center", ncols=3)
    write_figure(path, figure)


def scaled_bars(measured: list[Scaled], path: Path) -> None:
    """Draw the tokens a second of each launch beside the ideal (N times one process), and the memory of a rank."""
    plt = _matplotlib()
    figure, (speeds, memory) = plt.subplots(
        1, 2, figsize=(2.5 + 3.2 * len(measured), 4.2), layout="constrained", squeeze=True
    )
    names = list(dict.fromkeys((one.strategy, one.ranks) for each in measured for one in each.spreads))
    width = 0.8 / len(names)
    for position, (strategy, ranks) in enumerate(names):
        label = _launch(strategy, ranks)
        for x, scaled in enumerate(measured):
            spread = next((spread for spread in scaled.spreads if spread.strategy == strategy), None)
            if spread is None or spread.refused:
                continue
            left, color = x + position * width, f"C{position}"
            ideal = ranks * scaled.tokens(scaled.spreads[0])
            speeds.bar(left, ideal, width, fill=False, edgecolor=color, linestyle=":")
            bar = speeds.bar(left, scaled.tokens(spread), width, color=color, label=label if x == 0 else None)
            speeds.bar_label(bar, [f"{scaled.tokens(spread):,.0f}"], fontsize=7, padding=3)
            memory.bar(left, max(spread.peak_bytes) / 2**30, width, color=color)
    for axes, what in ((speeds, "tokens a second (dotted: ideal)"), (memory, "GiB of a rank at the peak")):
        axes.set_xticks([x + 0.4 - width / 2 for x in range(len(measured))], [each.shape.name for each in measured])
        axes.set_ylabel(what)
        axes.margins(y=0.15)
    figure.legend(fontsize=8, loc="outside upper center", ncols=len(names))
    write_figure(path, figure)


def curves(measured: list[Rates], margin: float, path: Path) -> None:
    """Draw the detection curve of each rule."""
    plt = _matplotlib()
    figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    shares = [100 * rate.share for rate in measured]
    # Curves of rules that agree cover each other. The first is the widest, so that each can be seen.
    for position, rule in enumerate(measured[0].slower):
        said_slower, width = [100 * rate.slower[rule] for rate in measured], 7 / (1 + position)
        axes.plot(shares, said_slower, marker="o", markersize=4 + width, linewidth=width, alpha=0.6, label=rule)
    axes.axvline(100 * margin, color="grey", linestyle=":", label=f"margin {margin:.1%}")
    axes.set_xlabel("slower by, percent")
    axes.set_ylabel('trials that say "slower", percent')
    axes.legend(fontsize=8)
    write_figure(path, figure)


def _matplotlib() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
