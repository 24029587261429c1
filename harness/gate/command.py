"""`peft-harness gate` and `peft-harness check --with`."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from harness import contract
from harness.errors import UsageError
from harness.files import write_whole
from harness.gate import baseline_cache, compare, environments, show
from harness.gate import bisect as bisection
from harness.gate import history as past
from harness.gate.compare import Told
from harness.gate.environments import Environment
from harness.gate.findings import exit_code
from harness.gate.probe import Prober, Seen
from harness.gate.scope import Scope
from harness.gate.side import Side
from harness.paths import OUR_SETTINGS, SAFE_PATH, SUITES

_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)

#: Workers of a side: each takes a GiB or two of the host's memory with its ranks, and waits for a GPU half of its time.
MOST_WORKERS = {"cpu": 4, "cuda": 8}


def check(requirements: list[str], judged: Scope, json: Path | None, rest: list[str]) -> int:
    """Judge the stack that the requirements make. Returns the exit code of the suites."""
    environment = made([" ".join(requirements)])[0]
    options = judged.options() + (["--json", str(json.absolute())] if json is not None else [])
    if json is not None:
        write_whole(json.with_suffix(".lock"), environment.lock)
    words = [
        *SAFE_PATH,
        "-m",
        "pytest",
        *OUR_SETTINGS,
        str(SUITES),
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile",
        "sample",
        *options,
        *workers(judged, rest),
        *rest,
    ]
    code = environment.run(*words).returncode
    return 2 if code in (4, 5) else code


def workers(judged: Scope, rest: list[str]) -> list[str]:
    """pytest's words for a worker a core, unless it was told how many."""
    if judged.device != "cpu" or any(word.startswith("-n") for word in rest):
        return []
    return ["-n", "auto", "--maxprocesses", "4"]


def gate(
    baseline: str,
    candidate: str,
    judged: Scope,
    json: Path | None,
    markdown: Path | None,
    candidate_preloads: tuple[str, ...] = (),
    anew: bool = False,
    quick: bool = False,
) -> int:
    """Compare two stacks. Returns 0 safe, 1 unsafe, 3 inconclusive; UsageError where it could not run.

    - candidate_preloads: modules that only the candidate imports, after those of `judged`.
    - anew: judge the baseline's cases even if an earlier gate has cached them (`harness.gate.baseline_cache`).
    - quick: see `compare.gate`; without effect if the baseline is cached.
    """
    changed = dataclasses.replace(judged, preloads=(*judged.preloads, *candidate_preloads))
    for path in (json, markdown):
        if path is not None and path.is_dir():
            raise UsageError(f"{path}: is a directory; name a file")
    console = Console(stderr=True)
    before, after = made([baseline, candidate])
    for asked in (baseline, candidate):
        if asked != environments.CURRENT and environments.LEFT_OUT in environments.named(asked):
            console.print(f"{asked}: {environments.LEFT_OUT} is left out, and its chapter is skipped", highlight=False)
    place = (
        Path(".peft-harness") / "gate" / baseline_cache.identity(before.key, after.key, judged, changed, anew, quick)
    )
    with _alone(place) as directory:
        file = baseline_cache.place(before, judged)
        known = "" if file is None or anew else baseline_cache.since(file)
        sides = [
            Side("baseline", before, directory / "baseline", judged, file, known),
            Side("candidate", after, directory / "candidate", changed, baseline_cache.place(after, changed)),
        ]
        if known:
            words = f"baseline: what held when a gate judged it on {known} is not judged again (--anew judges all)"
            console.print(words, highlight=False)
        if any(side.done for side in sides):
            console.print(f"goes on where an interrupted gate stopped ({place})", highlight=False)
        with _progress(console) as told:
            count = min(MOST_WORKERS[judged.device], max(1, (os.cpu_count() or 2) // 2))
            outcome = compare.gate(sides[0], sides[1], count, told, quick and not known)
        if json is not None:
            show.write_report(json, sides, outcome)
        if markdown is not None:
            write_whole(markdown, show.markdown(sides, outcome))
        screen = Console()
        show.screen(screen if screen.is_terminal else Console(width=160), sides, outcome)
    shutil.rmtree(place, ignore_errors=True)
    return exit_code(outcome.verdict)


def bisect(clause: str, good: str, bad: str, judged: Scope, json: Path | None) -> int:
    """Find the release that broke a clause. Returns 0 where it is found, 3 where only a range is."""
    contract_clauses = contract.select([clause])
    if len(contract_clauses) != 1:
        raise UsageError(f"--clause {clause}: names {len(contract_clauses)} clauses; a bisection is of one")
    (clause,) = contract_clauses
    screen, ends = Console(), made([good, bad])
    differ = [name for name in ends[0].stack if ends[0].stack[name] != ends[1].stack.get(name)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (*differ, clause, "seconds", "seen"):
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    with Progress(TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(f"{clause}: good and bad")

        def told(stack: dict[str, str], seen: Seen, verdict: str, wanted: list[str]) -> None:
            changing = [stack.get(name, "-") for name in differ]
            table.add_row(*changing, verdict, f"{seen.seconds:.0f}", seen.told(wanted))
            words = ", ".join(f"{name} {version}" for name, version in zip(differ, changing, strict=True))
            progress.update(task, description=f"{clause}: {table.row_count} tried, the last {words}: {verdict}")

        answer = bisection.bisect(clause, ends[0], ends[1], Prober(clause, judged), told)
    if json is not None:
        bisection.write_json(json, answer, ends[0], ends[1])
    (screen if screen.is_terminal else Console(width=160)).print(table)
    screen.print(str(answer), style="bold", highlight=False, soft_wrap=True)
    return 0 if answer.exact else 3


def history(ids: list[str], judged: Scope) -> int:
    """Put faults of the past to the test. Returns 0 where each is caught, 1 otherwise."""
    wanted = past.chosen(ids)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "clause", "caught by", "bad stack", "seen there"):
        table.add_column(column, overflow="fold", min_width=len(column) or 3)
    caught = True
    with Progress(*_COLUMNS, console=Console(stderr=True)) as progress:
        for release in progress.track(wanted, description="history"):
            told = past.put_to_the_test(release, judged)
            caught &= told.caught > 0
            table.add_row(release.id, release.clause, _count(told.caught), release.bad, told.seen)
    screen = Console()
    (screen if screen.is_terminal else Console(width=160)).print(table)
    return 0 if caught else 1


def _count(caught: int) -> str:
    return f"{caught} case{'s' * (caught > 1)}" if caught else "no case"


def made(requirements: list[str]) -> list[Environment]:
    """The environments, made side by side. UsageError where one cannot be."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(environments.make, requirements))


@contextmanager
def _alone(place: Path) -> Iterator[Path]:
    """Hold a gate's directory for this process alone. If the process dies, the kernel frees the lock."""
    place.mkdir(parents=True, exist_ok=True)
    (place.parent.parent / ".gitignore").write_text("*\n")
    try:
        lock = FileLock(place / "lock").acquire(timeout=0)
    except Timeout:
        raise UsageError(f"{place}: another gate of the same stacks is running here; wait for it") from None
    with lock:
        yield place.absolute()


@contextmanager
def _progress(console: Console) -> Iterator[Told]:
    with Progress(*_COLUMNS, console=console) as progress:
        tasks: dict[tuple[str, str], object] = {}

        def told(side: str, what: str, ended: int, count: int | None) -> None:
            key = (side, what)
            if key not in tasks:
                tasks[key] = progress.add_task(f"{side}: {what}", total=None)
            progress.update(tasks[key], completed=ended, total=count)  # type: ignore[arg-type]

        yield told
