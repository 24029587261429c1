"""The command `peft-harness trend`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from harness.files import write_figure, write_whole
from harness.progress import screen
from harness.reports import nights, trend, trend_page
from harness.reports.trend import Change, Series, Track
from harness.words import counted

SCHEMA_VERSION = 1

#: Rows of a table on the screen, so that everything fits one screen.
_ROWS = 12


def run(directory: Path, html: Path | None, png: Path | None, json_file: Path | None) -> int:
    """Print what changed over the reports of a directory, and write the files that are asked for. Returns 0.

    Raises UsageError if the directory has no report.
    """
    found, left_out = nights.read(directory)
    tracks = trend.tracks(found)
    console = screen()
    for track in tracks:
        for line in (_title(track), *_answers(track)):
            console.print(Text(line))
        if track.clauses:
            console.print(_clauses(track))
    for file, why in left_out:
        console.print(Text(f"left out: {file}: {why}"))
    if json_file is not None:
        write_whole(json_file, json.dumps(to_json(tracks, left_out), indent=1) + "\n")
    if html is not None:
        write_whole(html, trend_page.write(tracks, left_out))
    if png is not None:
        write_figure(png, trend_page.figure(tracks))
    return 0


def _title(track: Track) -> str:
    first, last = (track.nights[at].date.date().isoformat() for at in (0, -1))
    return f"{counted(len(track.nights), 'report')} of {track.kind} on {track.device}, {first} to {last}"


def _answers(track: Track) -> list[str]:
    drifting = [one for one in track.series if one.drifts]
    lines = [f"  {trend_page.sentence(one, track)}" for one in drifting[:_ROWS]]
    if len(drifting) > _ROWS:
        lines.append(f"  and {counted(len(drifting) - _ROWS, 'more number')} that drift; see --html or --json")
    short = [one for one in track.series if one.total is None and one.kind == trend.MEASURED]
    lines.append(
        f"  {counted(len(drifting), 'number')} drifted, {len(track.series) - len(drifting)} more changed or varied, "
        f"{track.steady} stayed the same; {counted(len(track.clauses), 'clause')} changed"
    )
    if short:
        why = f"judged from {trend.FEWEST} reports on"
        lines.append(f"  not judged: {counted(len(short), 'measured number')} with fewer reports ({why})")
    return lines


def _clauses(track: Track) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("clause", "was", "is", "between", "", "versions"):
        table.add_column(column, overflow="fold")
    rows = [(id, change) for id, changes in track.clauses.items() for change in changes]
    rows.sort(key=lambda row: -row[1].after)
    for id, change in rows[:_ROWS]:
        before, after = track.nights[change.before], track.nights[change.after]
        dates = [night.date.date().isoformat() for night in (before, after)]
        table.add_row(*map(Text, (id, change.was, change.is_, *dates, trend.moved(before, after) or "the same")))
    if len(rows) > _ROWS:
        table.add_row(Text(f"and {len(rows) - _ROWS} more"))
    return table


def to_json(tracks: list[Track], left_out: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the trend as trend_schema.json describes it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "tracks": [_track(track) for track in tracks],
        "left_out": [{"file": file, "why": why} for file, why in left_out],
    }


def _track(track: Track) -> dict[str, Any]:
    return {
        "kind": track.kind,
        "device": track.device,
        "nights": [
            {"date": night.date.isoformat(), "file": night.file, "verdict": night.verdict, "versions": night.versions}
            for night in track.nights
        ],
        "clauses": [
            {"clause": id, "changes": [_change(change, track) for change in changes]}
            for id, changes in track.clauses.items()
        ],
        "series": [_series(one, track) for one in track.series],
        "steady": track.steady,
    }


def _series(one: Series, track: Track) -> dict[str, Any]:
    return {
        "name": one.name,
        "kind": one.kind,
        "drifts": one.drifts,
        "total": one.total,
        "interval": [one.low, one.high],
        "chance": one.chance,
        "changes": [_change(change, track) for change in one.changes],
        "positions": one.positions,
        "values": one.values,
    }


def _change(change: Change, track: Track) -> dict[str, Any]:
    before, after = track.nights[change.before], track.nights[change.after]
    return {
        "before": before.date.isoformat(),
        "after": after.date.isoformat(),
        "was": change.was,
        "is": change.is_,
        "versions": trend.moved(before, after),
    }
