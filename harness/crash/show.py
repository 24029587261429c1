"""The states and outcomes of explorations: as a table, a page and a plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness import pages
from harness.crash.exploration import Exploration
from harness.crash.outcomes import MEANING, OUTCOMES, REFUSED, SILENT, Judged
from harness.words import counted, one_line

#: Told apart by colour-blind readers, too (Okabe and Ito 2008), best first.
_COLOURS = ("#009e73", "#56b4e9", "#f0e442", "#e69f00", "#d55e00")

#: Examples of each outcome that a scenario has.
_EXAMPLES = 3

Counts = Mapping[str, Mapping[str, int]]


def table(rows: Iterable[tuple[str, Counts]]) -> Table:
    """Return the table of states and outcomes.

    - rows: a scenario, and way of loading -> outcome -> number of states.
    """
    made = Table(box=None, pad_edge=False, header_style="")
    made.add_column("crash states of a save")
    made.add_column("loaded")
    for name in ("states", *OUTCOMES):
        made.add_column(name, justify="right")
    for scenario, ways in rows:
        for number, (way, counts) in enumerate(ways.items()):
            numbers = [str(counts.get(what, 0) or "-") for what in OUTCOMES]
            made.add_row("" if number else scenario, way, str(sum(counts.values())), *numbers)
    return made


def show(console: Console, explored: Sequence[Exploration], seconds: float, subject: str) -> None:
    """Print the table, examples of what is wrong, and notes. subject: whose saves they are."""
    console.print(table((one.name, one.outcomes) for one in explored))
    console.print()
    for what in OUTCOMES:
        console.print(f"{what}: {MEANING[what]}", highlight=False, markup=False)
    for one in explored:
        for example in examples(one):
            console.print(f"{one.name}: {sentence(example)}", highlight=False, markup=False)
        for note in one.notes:
            console.print(f"{one.name}: {one_line(note)}", highlight=False, markup=False)
    made, judged = sum(one.states for one in explored), sum(one.judged for one in explored)
    share = "all" if made == judged else f"a sample of {judged}"
    console.print(
        f"{subject}: {counted(made, 'crash state')} of {counted(len(explored), 'save')}, {share} judged in "
        f"{seconds:.0f} s",
        highlight=False,
        markup=False,
    )


def examples(explored: Exploration) -> list[Judged]:
    """Return the first states of each way that end in silence or are refused without help, a few of each."""
    found: list[Judged] = []
    for what in (SILENT, REFUSED):
        by_way: dict[tuple[str, str], Judged] = {}
        for one in explored.found:
            if one.outcome == what:
                by_way.setdefault((one.way, one.said.partition(":")[0]), one)
        found += list(by_way.values())[:_EXAMPLES]
    return found


def sentence(one: Judged) -> str:
    """Return what became of a state, in one line."""
    return f"{one.outcome}: {one.how}; {f'{one.way} {one.folder}'.rstrip()}: {one_line(one.said)[:200]}"


def page(explored: Sequence[Exploration], environment: Mapping[str, Any], subject: str) -> str:
    """Return a page that loads nothing. What upstream said is escaped. subject: whose saves they are."""
    template = pages.templates(Path(__file__).parent).get_template("crash.html.j2")
    return template.render(
        explored=explored,
        subject=subject,
        outcomes=OUTCOMES,
        meaning=MEANING,
        examples=examples,
        sentence=sentence,
        versions=environment.get("versions", {}),
        plot=_svg(explored),
    )


def _svg(explored: Sequence[Exploration]) -> str:
    """Return the plot as a data address; "" if matplotlib is not installed."""
    try:
        figure = plot(explored)
    except ImportError:
        return ""
    return pages.figure_address(figure, bbox_inches="tight")


def plot(explored: Sequence[Exploration]) -> Any:
    """Return a figure: for each way of loading, a bar for each save, divided by outcome. ImportError without matplotlib."""
    from matplotlib.figure import Figure

    ways = list(dict.fromkeys(way for one in explored for way in one.outcomes))
    size = (3.2 * max(1, len(ways)) + 2, 0.34 * len(explored) + 1.9)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, max(1, len(ways)), sharey=True, squeeze=False)[0]
    names = [one.name for one in explored]
    for axes, way in zip(panels, ways, strict=False):
        start = [0.0] * len(explored)
        for what, colour in zip(OUTCOMES, _COLOURS, strict=True):
            shares = []
            for one in explored:
                counts = one.outcomes.get(way, {})
                shares.append(100 * counts.get(what, 0) / max(1, sum(counts.values())))
            axes.barh(range(len(names)), shares, left=start, color=colour, label=what)
            start = [was + share for was, share in zip(start, shares, strict=True)]
        axes.set_title(way, fontsize=10)
        axes.set_xlim(0, 100)
        axes.set_xlabel("% of crash states")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(OUTCOMES), fontsize=9)
    return figure
