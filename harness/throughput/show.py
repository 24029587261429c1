"""Figures of throughput, for people: tables and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness.errors import UsageError
from harness.throughput.rates import Rates
from harness.throughput.scaling import Scaled, Spread
from harness.throughput.speed import Measured, Row


def table(console: Console, measured: list[Measured]) -> None:
    """A line for each side at each shape."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "shape",
        "",
        "tokens/s",
        "ms a step",
        "the Trainer is slower by",
        "peak GiB",
        "TFLOP/s",
        "of ceiling",
        "loss",
    ):
        shown.add_column(name, justify="left" if name in ("shape", "") else "right", no_wrap=True)
    for one in measured:
        for number, row in enumerate(one.rows):
            name = f"{one.shape.name} ({one.shape.rows} x {one.shape.length})" if number == 0 else ""
            shown.add_row(name, row.name, *_cells(one, row))
        assert one.ceiling is not None
        bound = f"{one.bound:,.0f}" if one.flops else "-"
        shown.add_row("", "what the device allows", bound, "", "", "", f"{one.ceiling.flops / 1e12:,.2f}", "", "")
    console.print(shown)
    refused = {f"{row.name}: {row.refused}" for one in measured for row in one.rows if row.refused}
    for sentence in sorted(refused):
        console.print(f"not timed: {sentence}", style="dim", highlight=False)


def _cells(one: Measured, row: Row) -> list[str]:
    if row.refused:
        return ["-"] * 7
    return [
        f"{one.tokens(row):,.0f}",
        f"{1e3 * row.seconds:,.2f}",
        f"{row.overhead}" if row.overhead else "",
        f"{row.peak_bytes / 2**30:.2f}",
        f"{one.flops / row.seconds / 1e12:,.3f}",
        f"{one.share(row):.1%}",
        "" if row.loss is None else f"{row.loss:.5f}",
    ]


def scaling(console: Console, measured: list[Scaled]) -> None:
    """A line for each launch at each shape."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("shape, of each rank", "launch", "tokens/s", "ms a step", "quartiles", "efficiency", "GiB of each rank",
                 "collectives", "MB of them"):  # fmt: skip
        shown.add_column(name, justify="left" if name in ("shape, of each rank", "launch") else "right", no_wrap=True)
    for each in measured:
        for number, one in enumerate(each.spreads):
            name = f"{each.shape.name} ({each.shape.rows} x {each.shape.length})" if number == 0 else ""
            launch = f"{one.strategy} x {one.ranks}" if one.ranks > 1 else "one process"
            shown.add_row(name, launch, *_scaled_cells(each, one))
    console.print(shown)
    for each in measured:
        for one in each.spreads:
            if one.refused:
                console.print(
                    f"not timed: {each.shape.name}, {one.strategy}: {one.refused}", style="dim", highlight=False
                )


def _scaled_cells(each: Scaled, one: Spread) -> list[str]:
    if one.refused:
        return ["-"] * 7
    low, high = one.middle
    memory = [f"{peak / 2**30:.2f}" for peak in one.peak_bytes]
    return [
        f"{each.tokens(one):,.0f}",
        f"{1e3 * one.seconds:,.2f}",
        f"{1e3 * low:,.2f} to {1e3 * high:,.2f}",
        f"{each.efficiency(one):.1%}" if one.ranks > 1 else "",
        ", ".join(memory) if len(set(memory)) > 1 else memory[0],
        f"{one.collectives}" if one.ranks > 1 else "",
        f"{one.collective_bytes / 1e6:,.2f}" if one.ranks > 1 else "",
    ]


def rates(console: Console, measured: list[Rates], margin: float, budget: float) -> None:
    """How often each rule says "slower", by the slowdown that there was."""
    rules = list(measured[0].slower)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("slower by", "came to", *rules, "undecided", "median s", "sd of A B B A"):
        shown.add_column(name, justify="right")
    for one in measured:
        cells = [f"{one.slower[rule]:.1%}" for rule in rules]
        shown.add_row(
            f"{one.share:.1%}" if one.share else "equals",
            f"{one.came_to:+.2%}",
            *cells,
            f"{one.unclear:.1%}",
            f"{one.seconds:.0f}",
            f"{one.spread:.1%}",
        )
    console.print(
        f'how often "slower" is said; margin {margin:.1%}, {budget:.0f} s at most, {measured[0].trials} trials each'
    )
    console.print(shown)


def bars(measured: list[Measured], path: Path) -> None:
    """Tokens a second of each side, as a share of what the device allows."""
    plt = _matplotlib()
    figure, axes = plt.subplots(figsize=(1.8 + 2.2 * len(measured), 4.5), layout="constrained")
    names = list(dict.fromkeys(row.name for one in measured for row in one.rows))
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        rows = [next((row for row in one.rows if row.name == name), None) for one in measured]
        speeds = [one.tokens(row) if row and not row.refused else 0.0 for one, row in zip(measured, rows, strict=True)]
        drawn = axes.bar([x + place * width for x in range(len(measured))], speeds, width, label=name)
        axes.bar_label(
            drawn, [f"{value:,.0f}" if value else "-" for value in speeds], fontsize=7, rotation=90, padding=3
        )
    axes.set_yscale("log")
    axes.margins(y=0.25)
    axes.set_xticks([x + 0.4 - width / 2 for x in range(len(measured))], [one.shape.name for one in measured])
    axes.set_ylabel("tokens a second")
    axes.legend(fontsize=8)
    _save(figure, path)


def scaled_bars(measured: list[Scaled], path: Path) -> None:
    """Tokens a second of each launch beside so many times the one process's, and memory of a rank."""
    plt = _matplotlib()
    figure, (speeds, memory) = plt.subplots(
        1, 2, figsize=(2.5 + 3.2 * len(measured), 4.2), layout="constrained", squeeze=True
    )
    names = list(dict.fromkeys((one.strategy, one.ranks) for each in measured for one in each.spreads))
    width = 0.8 / len(names)
    for place, (strategy, ranks) in enumerate(names):
        label = f"{strategy} x {ranks}" if ranks > 1 else "one process"
        for x, each in enumerate(measured):
            one = next((each_one for each_one in each.spreads if each_one.strategy == strategy), None)
            if one is None or one.refused:
                continue
            left, color = x + place * width, f"C{place}"
            ideal = ranks * each.tokens(each.spreads[0])
            speeds.bar(left, ideal, width, fill=False, edgecolor=color, linestyle=":")
            bar = speeds.bar(left, each.tokens(one), width, color=color, label=label if x == 0 else None)
            speeds.bar_label(bar, [f"{each.tokens(one):,.0f}"], fontsize=7, padding=3)
            memory.bar(left, max(one.peak_bytes) / 2**30, width, color=color)
    for axes, what in ((speeds, "tokens a second (dotted: without waiting)"), (memory, "GiB of a rank at the peak")):
        axes.set_xticks([x + 0.4 - width / 2 for x in range(len(measured))], [each.shape.name for each in measured])
        axes.set_ylabel(what)
        axes.margins(y=0.15)
    figure.legend(fontsize=8, loc="outside upper center", ncols=len(names))
    _save(figure, path)


def curves(measured: list[Rates], margin: float, path: Path) -> None:
    """The detection curve of each rule."""
    plt = _matplotlib()
    figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    shares = [100 * one.share for one in measured]
    # Rules that say the same lie upon each other: the first is the widest, so that each is seen.
    for place, rule in enumerate(measured[0].slower):
        said, width = [100 * one.slower[rule] for one in measured], 7 / (1 + place)
        axes.plot(shares, said, marker="o", markersize=4 + width, linewidth=width, alpha=0.6, label=rule)
    axes.axvline(100 * margin, color="grey", linestyle=":", label=f"margin {margin:.1%}")
    axes.set_xlabel("slower by, percent")
    axes.set_ylabel('trials that say "slower", percent')
    axes.legend(fontsize=8)
    _save(figure, path)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise UsageError("--plot: matplotlib is not installed; pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise UsageError(f"--plot {path}: {error}") from None
