"""The commands `peft-harness gate`, `bisect`, `history` and `check --with`."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table

from harness import contract
from harness.errors import UsageError
from harness.files import write_whole
from harness.gate import (
    baseline_cache,
    case_files,
    compare,
    environments,
    extras,
    locks,
    next_steps,
    requires,
    show,
    summary,
)
from harness.gate import bisect as bisection
from harness.gate import history as past
from harness.gate.environments import Environment
from harness.gate.findings import exit_code
from harness.gate.probe import Prober, StackResult
from harness.gate.requirements import CURRENT, read
from harness.gate.scope import Scope
from harness.gate.side import Side
from harness.paths import OUR_SETTINGS, SAFE_PATH, SUITES
from harness.processes import engine
from harness.processes.guard import ignore_ctrl_c
from harness.progress import Progress, Task, screen
from harness.reports import github
from harness.words import counted

#: Most workers of a side. Each takes one or two GiB of the host's memory with its ranks. On a GPU each waits half of its
#: time, so more of them are useful.
MOST_WORKERS = {"cpu": 4, "cuda": 8}


def check(requirements: list[str], judged: Scope, json: Path | None, html: Path | None, rest: list[str]) -> int:
    """Judge the stack that the requirements make. Returns the exit code of the suites.

    - json, html: files for the report and its page.
    - rest: further words for pytest.
    """
    asked = " ".join(requirements)
    check_inputs([asked], json, html)
    (environment,) = made([asked], judged)
    for name, why in environment.lacks:
        print(f"peft-harness: {name} is left out, and cases that need it are skipped ({why})", file=sys.stderr)
    for contradiction in requires.contradictions(environment):
        print(f"peft-harness: {contradiction}", file=sys.stderr)
    options = judged.options() + (["--json", str(json.absolute())] if json is not None else [])
    # The plugin pytest-html has an option of that name.
    options += ["-p", "no:html", "--html", str(html.absolute())] if html is not None else []
    if json is not None:
        beside = json.with_suffix(".lock")
        file = locks.write_beside(beside, environment.lock, json)
        if file != beside:
            print(f"peft-harness: {beside} is there, so the lock of this stack is in {file}", file=sys.stderr)
    words = [
        *SAFE_PATH, "-m", "pytest", *OUR_SETTINGS, str(SUITES), "-p", "no:cacheprovider",
        "--hypothesis-profile", "sample", "--called", shlex.join(["peft-harness", "check", "--with", asked]),
        *options, *workers(judged, rest), *rest,
    ]  # fmt: skip
    code = environment.run(*words, preexec_fn=ignore_ctrl_c).returncode
    return 2 if code in (4, 5) else code  # pytest calls wrong usage 4 and no test 5


def repro(requirements: list[str], file: Path, rest: list[str]) -> int:
    """Repeat a case in the stack that the requirements make. Returns the exit code of `peft-harness repro` there.

    - file: the case file, or a RunSpec.
    - rest: further words for `peft-harness repro`.
    """
    (environment,) = made([" ".join(requirements)], Scope())
    words = [*SAFE_PATH, "-m", "harness.cli", "repro", str(file), *rest]
    return environment.run(*words, preexec_fn=ignore_ctrl_c).returncode


def workers(judged: Scope, rest: list[str]) -> list[str]:
    """Return pytest's words for one worker a core.

    None on a GPU, for runs of --spec, which each worker would train again, or if the user's own words say how many.
    """
    if judged.device != "cpu" or judged.specs or any(word.startswith("-n") for word in rest):
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
    full: bool = False,
    others: Mapping[str, Path] | None = None,
    annotate: bool = False,
) -> int:
    """Compare two stacks, given by their requirements. Returns 0 safe, 1 unsafe, 3 inconclusive.

    - json, markdown: files for the report and the summary.
    - candidate_preloads: modules that only the candidate imports, after those of `judged`.
    - anew: judge all of the baseline's cases, even those that an earlier gate has cached (`harness.gate.baseline_cache`).
    - quick: see `compare.gate`. It has no effect if the baseline is cached.
    - full: print all causes and findings, not only what fits on one screen.
    - others: module of harness/reports/ -> the file that it writes.
    - annotate: print annotations for GitHub Actions at the end.

    Raises UsageError if the gate could not run.
    """
    changed = dataclasses.replace(judged, preloads=(*judged.preloads, *candidate_preloads))
    check_inputs([baseline, candidate], json, markdown, *(others or {}).values())
    notes = screen(sys.stderr)
    before, after = made([baseline, candidate], judged)
    left_out = extras.on_one_side(before, after)
    for name, reason in left_out:
        notes.print(f"left out on both sides: {name} ({reason})")
    wanted = requires.of_sides({"baseline": before, "candidate": after})
    for one in wanted:
        notes.print(f"{' and '.join(one['sides'])}: {one['sentence']}")
    judged, changed = (dataclasses.replace(one, left_out=left_out) for one in (judged, changed))
    before, after = (extras.without(side, [name for name, _ in left_out]) for side in (before, after))
    results = (
        Path(".peft-harness") / "gate" / baseline_cache.identity(before.key, after.key, judged, changed, anew, quick)
    )
    with _locked(results) as directory:
        file = baseline_cache.file_for(before, judged)
        cached_since = "" if file is None or anew else baseline_cache.cached_since(file)
        sides = [
            Side("baseline", before, directory / "baseline", judged, file, cached_since),
            Side("candidate", after, directory / "candidate", changed, baseline_cache.file_for(after, changed)),
        ]
        if cached_since:
            notes.print(f"baseline: reuses the results cached on {cached_since} (--anew judges all cases again)")
        if any(side.done for side in sides):
            notes.print(f"continues an interrupted gate ({results})")
        with _stages() as report:
            # Each worker would train the runs of --spec again.
            count = 1 if judged.specs else min(MOST_WORKERS[judged.device], max(1, (os.cpu_count() or 2) // 2))
            outcome = compare.gate(sides[0], sides[1], count, report, quick and not cached_since)
        outcome.requires = wanted
        place = case_files.directory(json)
        files, unwritten = case_files.write_all(place, outcome, changed)
        outcome.causes = next_steps.with_next(outcome.causes, baseline, candidate, changed, files)
        body = show.to_report(sides, outcome)
        named = [str(path) for path in (json, markdown, *(others or {}).values()) if path is not None]
        named += [f"{place}{os.sep} ({counted(len(files), 'case file')})"] if files else []
        # If a file cannot be written after all, the result was printed.
        show.screen(screen(), body, named, full)
        if json is not None:
            show.write_report(json, sides, body)
        if markdown is not None:
            write_whole(markdown, summary.markdown(body))
        for name, path in (others or {}).items():
            write_whole(path, importlib.import_module(f"harness.reports.{name}").write(body))
        if annotate:
            sys.stdout.write(github.write(body))
        if unwritten is not None:
            raise unwritten
        _delete(directory)
    return exit_code(outcome.verdict)


def bisect(
    clause: str | None,
    good: str,
    bad: str,
    judged: Scope,
    json: Path | None,
    on: str | None = None,
    workers: int | None = None,
) -> int:
    """Find the release that broke a clause, or the run of --spec. Returns 0 if it is found, 3 if only a range of releases is.

    - clause: the clause; None for all clauses that hold for the runs of `judged.specs` on `good` and fail on `bad`.
    - on, workers: where stacks are judged (`harness.processes.engine`); None for two at a time in this process.

    Raises UsageError if `clause` does not name one clause, or if nothing holds on `good` and fails on `bad`.
    """
    if clause is not None:
        selected = contract.select([clause])
        if len(selected) != 1:
            raise UsageError(f"--clause {clause}: names {counted(len(selected), 'clause')}; name exactly one")
        (clause,) = selected
        judged = dataclasses.replace(judged, clauses=(clause,))
    name = clause or ", ".join(one for one, _ in judged.specs)
    check_inputs([good, bad], json)
    if on is not None:
        engine.check(on)
    ends = made([good, bad], judged)
    differ = [name for name in ends[0].stack if ends[0].stack[name] != ends[1].stack.get(name)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in (*differ, name, "seconds", "seen"):
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    place = Path(".peft-harness") / "bisect"
    at_hand: contextlib.AbstractContextManager[engine.Engine | None] = contextlib.nullcontext()
    if on is not None:
        at_hand = engine.opened(on, workers, place, judged.device)
    with at_hand as running, Progress(None, f"bisect {name}") as progress:

        def doing(stack: str, what: str) -> None:
            words = [word for word in stack.split() if word.partition("==")[0] in differ]
            progress.update(text=f"{' '.join(words)}: {what}")

        def report(stack: dict[str, str], result: StackResult, verdict: str, cases: list[str]) -> None:
            changing = [stack.get(name, "-") for name in differ]
            table.add_row(*changing, verdict, f"{result.seconds:.0f}", result.summary(cases))
            words = " ".join(f"{name}=={version}" for name, version in zip(differ, changing, strict=True))
            progress.update(table.row_count, text=f"{words}: {verdict}")

        answer = bisection.bisect(name, ends[0], ends[1], Prober(judged, report=doing, engine=running), report)
    console = screen()
    console.print(table)
    console.print(str(answer), style="bold", soft_wrap=True)
    if json is not None:
        bisection.write_json(json, answer, ends[0], ends[1])
    return 0 if answer.exact else 3


def history(ids: list[str], judged: Scope) -> int:
    """Judge past faults of upstream on the releases that had them. Returns 0 if each is caught, 1 otherwise."""
    releases = past.chosen(ids)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "clause", "caught by", "bad stack", "seen there"):
        table.add_column(column, overflow="fold", min_width=len(column) or 3)
    all_caught = True
    with Progress(len(releases), "history") as progress:
        for release in releases:

            def doing(stack: str, what: str, id: str = f"{release.id} {release.clause}") -> None:
                progress.update(text=f"{id}, {stack}: {what}")

            chosen = dataclasses.replace(judged, clauses=(release.clause,))
            result = past.judge(release, judged, Prober(chosen, report=doing).ask)
            all_caught &= result.caught > 0
            caught_by = counted(result.caught, "case") if result.caught else "no case"
            table.add_row(release.id, release.clause, caught_by, release.bad, result.seen)
            progress.advance(1, f"{release.id} {release.clause} caught by {caught_by}")
    screen().print(table)
    return 0 if all_caught else 1


def made(requirements: list[str], judged: Scope) -> list[Environment]:
    """Make the environments, all at the same time. Raises UsageError if one cannot be made."""
    for note in dict.fromkeys(note for asked in requirements if asked.strip() != CURRENT for note in read(asked).notes):
        print(f"peft-harness: {note}", file=sys.stderr)
    with Progress(len(requirements), "making environments") as progress, ThreadPoolExecutor() as pool:
        optional = extras.wanted(environments.running().pins, CURRENT in requirements)

        def make(asked: str) -> Environment:
            environment = environments.make(asked, build=judged.build, added=judged.added, extras=optional)
            progress.advance(1, asked)
            return environment

        return list(pool.map(make, requirements))


def check_inputs(asked: list[str], *outputs: Path | None) -> None:
    """Raise UsageError if a file that is written is one of the files that the requirements are read from."""
    files = {file for stack in asked if stack.strip() != CURRENT for file, _ in read(stack).files}
    for path in outputs:
        if path is not None and Path(os.path.realpath(path)) in files:
            raise UsageError(f"{path}: is one of the requirements files, which would be overwritten; name another file")


@contextmanager
def _locked(directory: Path) -> Iterator[Path]:
    """Hold a gate's directory for this process alone. If the process dies, the kernel frees the lock.

    A gate that ends deletes its directory. If that was between opening and locking the file, the directory is made anew.
    """
    # A link would lead the results to a place that the user did not name.
    for place in (directory.parent.parent, directory.parent, directory):
        if place.is_symlink():
            raise UsageError(f"{place}: is a link, and the gate's results would go elsewhere; remove it")
    descriptor = None
    try:
        while descriptor is None:
            directory.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError), (directory.parent.parent / ".gitignore").open("x") as file:
                file.write("*\n")
            descriptor = _lock(directory / "lock")
    except BlockingIOError:
        raise UsageError(f"{directory}: another gate of the same stacks is running here; wait for it") from None
    except OSError as error:
        raise UsageError(f"{directory}: the gate's results cannot be written there ({error.strerror})") from None
    try:
        yield directory.absolute()
    finally:
        os.close(descriptor)


def _delete(directory: Path) -> None:
    """Delete the directory of a gate that has ended, while it is locked. The next gate may begin at any moment."""
    aside = directory.with_name(f".{directory.name}.ended")
    shutil.rmtree(aside, ignore_errors=True)  # of one that was killed just here
    with contextlib.suppress(OSError):
        directory.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _lock(file: Path) -> int | None:
    """Lock a file, and return its descriptor; None if it was deleted meanwhile. Raises BlockingIOError if it is held."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:  # it still has its name
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@contextmanager
def _stages() -> Iterator[compare.Report]:
    """Show a task for each stage of each side."""
    with Progress() as progress:
        tasks: dict[tuple[str, str], Task] = {}

        def report(side: str, stage: str, done: int, total: int | None) -> None:
            key = (side, stage)
            if key not in tasks:
                tasks[key] = progress.add(f"{side}: {stage}", total)
            tasks[key].update(done, total)

        yield report
