"""The trend as a page and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import pages
from harness.errors import UsageError
from harness.reports import trend
from harness.reports.trend import EXACT, Change, Series, Track
from harness.words import counted

#: Curves of a plot: more are too small to read. Those that drift come first.
_CURVES = 12

#: Colours that are told apart by colour-blind readers, too (Okabe and Ito 2008).
_DRIFTS, _VARIES = "#d55e00", "#0072b2"


def write(tracks: list[Track], left_out: list[tuple[str, str]]) -> str:
    """Return the page: one file that loads nothing. Texts of reports are escaped."""
    template = pages.templates(Path(__file__).parent).get_template("trend.html.j2")
    plots = [pages.figure_address(figure([track])) if track.series else "" for track in tracks]
    return template.render(
        tracks=list(zip(tracks, plots, strict=True)),
        left_out=left_out,
        sentence=sentence,
        day=day,
        moved=moved_at,
        share=share,
    )


def sentence(one: Series, track: Track) -> str:
    """Return how a number changed, in one sentence."""
    if one.total is None and one.kind == EXACT:
        return f"{one.name}: {value(one.values[0])} -> {value(one.values[-1])}"
    if one.total is None:
        return f"{one.name}: not judged, {counted(len(one.values), 'report')}"
    if one.kind == EXACT:
        largest = max(one.changes, key=lambda change: abs(float(change.is_) - float(change.was)))
        between = f"between {day(track, largest.before)} and {day(track, largest.after)}"
        several = f"in {len(one.changes)} changes, the largest " if len(one.changes) > 1 else ""
        return f"{one.name}: {share(one.total)} {several}{between}"
    interval = f"99 % interval {share(one.low)} to {share(one.high)}"
    if not one.drifts:
        return f"{one.name}: varies, no drift shown ({interval})"
    (change,) = one.changes
    parts = f"{day(track, change.before)} and {day(track, change.after)}"
    return f"{one.name}: {share(one.total)} ({interval}), lower and higher values part best between {parts}"


def day(track: Track, position: int) -> str:
    return track.nights[position].date.date().isoformat()


def moved_at(track: Track, change: Change) -> str:
    """Return which versions differ between the nights of a change."""
    return trend.moved(track.nights[change.before], track.nights[change.after]) or "the same"


def share(number: float | None) -> str:
    return "unknown" if number is None else f"{100 * number:+.2f} %"


def value(number: float) -> str:
    return f"{int(number):,}" if float(number).is_integer() else f"{number:.5g}"


def figure(tracks: list[Track]) -> Any:
    """Return a figure of matplotlib with a curve for each number that changed or varies, as shares of its median.

    Raises UsageError if matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("trend: matplotlib is not installed; pip install 'peft-harness[trend]'") from None
    shown = [(track, one) for track in tracks for one in track.series][:_CURVES]
    drawn = Figure(figsize=(9, 0.6 + 1.9 * max(1, len(shown))), layout="constrained")
    axes = drawn.subplots(max(1, len(shown)), 1, squeeze=False)[:, 0]
    if not shown:
        axes[0].set_axis_off()
        axes[0].text(0.5, 0.5, "No number changed.", ha="center", va="center")
    for axis, (track, one) in zip(axes, shown, strict=False):
        _curve(axis, track, one)
    return drawn


def _curve(axis: Any, track: Track, one: Series) -> None:
    dates = [track.nights[at].date for at in one.positions]
    middle = sorted(one.values)[len(one.values) // 2]
    relative = bool(middle)
    values = [100 * (each / middle - 1) for each in one.values] if relative else one.values
    colour = _DRIFTS if one.drifts else _VARIES
    axis.plot(
        dates,
        values,
        marker="o",
        markersize=3,
        linewidth=1,
        color=colour,
        drawstyle="steps-post" * (one.kind == EXACT) or "default",
    )
    for change in one.changes if one.drifts else []:
        axis.axvline(track.nights[change.after].date, color=colour, linewidth=0.8, linestyle=":")
    word = f"drifts {share(one.total)}" if one.drifts else "varies" if one.kind != EXACT else f"{share(one.total)}"
    name = one.name if len(one.name) <= 90 else f"{one.name[:87]}..."
    axis.set_title(f"{name} ({word})".replace("$", r"\$"), fontsize=9, loc="left")
    axis.set_ylabel("% of median" if relative else "value", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.margins(y=0.2)
    axis.grid(alpha=0.3)
