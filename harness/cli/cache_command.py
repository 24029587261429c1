"""`peft-harness cache`: list what the harness keeps on disk, and remove what is old or all of it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.cache_entries import KINDS, Entry, entries, remove, strangers
from harness.cli.options import finite
from harness.errors import UsageError
from harness.files import reason
from harness.paths import cache_directory, is_cache
from harness.reading import shown_path
from harness.words import counted

DAY = 24 * 60 * 60

app = typer.Typer(rich_markup_mode=None)

_NAMES = [kind.name for kind in KINDS]


@app.callback(invoke_without_command=True)
def cache(context: typer.Context) -> None:
    """List or remove cached environments, results and models.

    Everything in the cache can be made again. It is in $PEFT_HARNESS_CACHE, or in ~/.cache/peft-harness.
    """
    if context.invoked_subcommand is None:
        list_()


@app.command("list")
def list_() -> None:
    """List each entry with its size, its age and what it is. The same as `peft-harness cache`."""
    from rich.table import Table
    from rich.text import Text

    from harness.progress import screen

    directory, console = _directory(), screen()
    found = entries(directory)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("kind", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("last used", justify="right", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for entry in found:
        text = f"{entry.text} ({entry.user})" if entry.user else entry.text
        table.add_row(entry.kind, _size(entry.size), _age(entry), Text(shown_path(text or entry.path.name)))
    if found:
        console.print(table)
        console.print()
    for kind in KINDS:
        of_kind = [entry for entry in found if entry.kind == kind.name]
        if of_kind:
            total = _size(sum(entry.size for entry in of_kind))
            console.print(
                f"{kind.name}: {counted(len(of_kind), 'entry', 'entries')}, {total}: {kind.what}", markup=False
            )
    for path in strangers(directory):
        console.print(f"not the harness's, never removed: {shown_path(path)}", markup=False)
    console.print(_summary(directory, found), markup=False)


@app.command("size")
def size() -> None:
    """Print the total size alone."""
    directory = _directory()
    print(_summary(directory, entries(directory)))


@app.command("clean")
def clean(
    kinds: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KIND", help=f"Remove these kinds only: {', '.join(_NAMES)}.", autocompletion=lambda: _NAMES
        ),
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS",
            min=0,
            max=36500,
            callback=finite,
            help="Remove only what was not used for this many days.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be removed, and remove nothing.")
    ] = False,
) -> None:
    """Remove entries of the cache, all unless you say which. What a running process uses stays."""
    unknown = [kind for kind in kinds or () if kind not in _NAMES]
    if unknown:
        raise UsageError(f"cache clean {unknown[0]}: no such kind; there are {', '.join(_NAMES)}")
    directory = _directory()
    chosen = [
        entry
        for entry in entries(directory)
        if (not kinds or entry.kind in kinds)
        and (older_than is None or time.time() - entry.used_at >= older_than * DAY)
    ]
    if chosen and not is_cache(directory):
        raise UsageError(
            f"{shown_path(directory)}: not marked as the harness's cache, so nothing in it is removed; "
            "remove what you do not need by other means"
        )
    for entry in (entry for entry in chosen if entry.user):
        print(f"left: {shown_path(entry.path)} ({entry.user})")
    unused, left = [entry for entry in chosen if not entry.user], []
    for entry in unused:
        print(f"{'would remove' if dry_run else 'removing'}: {shown_path(entry.path)} ({_size(entry.size)})")
        try:
            if not dry_run:
                remove(entry)
        except OSError as error:
            left.append((entry, reason(error)))
    _say([entry for entry in unused if entry not in [one for one, _ in left]], dry_run)
    if left:
        raise UsageError("; ".join(f"{shown_path(entry.path)}: cannot be removed ({why})" for entry, why in left))


def _directory() -> Path:
    """Return the cache directory, which may be missing. Raises UsageError if it is none, or cannot be read."""
    directory = cache_directory()
    try:
        next(directory.iterdir(), None)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(
            f"{shown_path(directory)}: the cache cannot be read ({reason(error)}); set PEFT_HARNESS_CACHE"
        ) from None
    return directory


def _say(unused: list[Entry], dry_run: bool) -> None:
    words = "would be removed" if dry_run else "removed"
    print(f"{counted(len(unused), 'entry', 'entries')} {words}, {_size(sum(entry.freed for entry in unused))} freed")


def _summary(directory: Path, found: Iterable[Entry]) -> str:
    found = list(found)
    total, freed = sum(entry.size for entry in found), sum(entry.freed for entry in found)
    shared = f"; {_size(total - freed)} of it is shared with other files, such as uv's cache" if freed < total else ""
    return f"{shown_path(directory)}: {counted(len(found), 'entry', 'entries')}, {_size(total)}{shared}"


def _size(number: int) -> str:
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if number >= unit), (1e3, "kB"))
    return f"{number / unit:.1f} {name}"


def _age(entry: Entry) -> str:
    days = int((time.time() - entry.used_at) // DAY)
    return "today" if days < 1 else f"{counted(days, 'day')} ago"
