"""`peft-harness sweep`: judge configurations until the time is over, and print what fails, by cause.

The first lines say what came out, and which share of the pairs was covered. Each cause follows, with its fewest fields and
the command that repeats it; then known defects, and what is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from harness import subjects
from harness.contract import clauses, expectations
from harness.environment import describe
from harness.errors import OutOfSpace
from harness.files import write_whole
from harness.paths import SUITES
from harness.processes import engine, ranks
from harness.processes.cuda_free_fork import cuda_untouched
from harness.processes.imports import import_upstream
from harness.processes.workers import prepare
from harness.progress import Progress, screen
from harness.reports import web_page
from harness.runs import fields
from harness.runs.fewest import cause
from harness.runs.sweep import ENOUGH, LIMIT, Cause, Refusal, Result, Sweep
from harness.runs.sweep_elsewhere import Elsewhere
from harness.runs.trial import BROKEN, ENDED, FAILS, OUTCOMES, UNDECIDED, Trial, unsupported
from harness.words import counted

SCHEMA_VERSION = 1

#: Seconds from which on the progress says how long the longest task is at work.
_LONG = 30.0

#: What is printed first.
_ORDER = (FAILS, ENDED, BROKEN, UNDECIDED)


def sweep(
    minutes: float,
    seed: int,
    workers: int | None,
    directory: Path,
    file: Path | None,
    html: Path | None = None,
    subject_name: str = "hf-trainer",
    on: str | None = None,
) -> int:
    """Judge configurations, print what was found, and return the exit code (`Result.code`).

    Raises OutOfSpace if a disk was full, after what was found before was printed.

    - minutes: how long the sweep may take.
    - seed: of the draw.
    - workers: how many configurations are judged at the same time; None: one a core, on a cluster what is usual there.
    - directory: where the spec of each cause is written.
    - file: where to write the result as JSON (session/sweep_schema.json); None: nowhere.
    - html: where to write the result as a page; None: nowhere.
    - subject_name: who trains, as for --subject.
    - on: the engine that judges configurations (`harness.processes.engine`); None: forks of this process.
    """
    if on is not None:
        engine.check(on)
    seconds, began = minutes * 60, time.monotonic()
    import_upstream()
    subject = subjects.load(subject_name)
    if on is None:
        with cuda_untouched():
            prepare()
    # This process forks, so no thread may print.
    with (
        _engine(on, workers, directory) as running,
        tempfile.TemporaryDirectory() as root,
        Progress(what="sweep", forks=True) as progress,
    ):
        result = Sweep(
            Trial(subject, expectations.load(SUITES / "expectations")),
            fields.names(),
            lambda row: unsupported(subject, row),
            fields.changed,
            directory=Path(root),
            seed=seed,
            workers=workers or len(os.sched_getaffinity(0)),
            seconds=seconds - (time.monotonic() - began),
            launch="launch",
            suspects=fields.SUSPECTS,
            modelled=fields.modelled(),
            begin=lambda: ranks.prepare(pristine=True),
            progress=lambda result: progress.update(result.judged, text=_so_far(result)),
            elsewhere=None if running is None else partial(Elsewhere, running, subject_name),
        ).run()
    files = spec_files(result, directory)
    show(result, files, screen())
    write_specs(result, files)
    if file is not None:
        write_whole(file, dumps(result, files, seed, minutes) + "\n")
    if html is not None:
        write_whole(html, web_page.write(to_json(result, files, seed, minutes)))
    if result.full:
        raise OutOfSpace(f"the sweep ended early: {result.full}")
    return result.code


def _engine(
    on: str | None, places: int | None, directory: Path
) -> contextlib.AbstractContextManager[engine.Engine | None]:
    return contextlib.nullcontext() if on is None else engine.opened(on, places, directory)


def _so_far(result: Result) -> str:
    waits = f", the longest at work for {result.longest:.0f} s" if result.longest > _LONG else ""
    return f"{result.phase}; {100 * result.share:.1f} % of the pairs, {counted(len(result.causes), 'cause')}{waits}"


# ---- what is printed ----


def show(result: Result, files: list[Path], console: Console) -> None:
    """Print a result. files: the spec of each cause."""
    for line in lines(result, files):
        console.print(Text(line))


def lines(result: Result, files: list[Path]) -> Iterator[str]:
    """Yield what is printed about a result. files: the spec of each cause."""
    yield f"{_answer(result)} ({counted(result.judged, 'configuration')} in {result.seconds / 60:.1f} min)"
    yield (
        f"{result.covered:,} of {result.allowed:,} pairs of values that are not refused are covered "
        f"({100 * result.share:.1f} %); {result.pairs - result.allowed:,} are refused"
    )
    yield (
        f"{result.ranked:,} configurations had several ranks; {result.equal:,} were equal to the independent reference; "
        f"laws: {', '.join(f'{number:,} {verdict}' for verdict, number in result.laws.most_common())}"
    )
    for kind, number in result.outcomes.most_common():
        yield f"{number:6,} {kind}: {OUTCOMES[kind]}"
    if result.stopped:
        yield f"{result.stopped:6,} of them stopped at a limit (a worker's is {LIMIT:g} s)"
    ordered = sorted(
        zip(result.causes, files, strict=True), key=lambda pair: (_ORDER.index(pair[0].kind), -pair[0].rows)
    )
    for number, (one, file) in enumerate(ordered, start=1):
        yield ""
        yield from _cause_lines(number, one, file)
    if result.known:
        yield ""
        yield "Known defects:"
        for (clause, reason), count in result.known.most_common():
            yield f"{count:6,} {clause}: {reason}"
    crashes = [one for one in result.refusals if one.crash]
    refusals = [one for one in result.refusals if not one.crash]
    for title, some in (("Upstream fails before its first step:", crashes), ("Refused:", refusals)):
        if some:
            yield ""
            yield title
        for sentence, group in by_sentence(some).items():
            examples = "; ".join(_words(one.fields) for one in group[:3])
            more = f"; and {len(group) - 3} more" if len(group) > 3 else ""
            yield f"{len(group):6,} {sentence}: {examples}{more}"


def _answer(result: Result) -> str:
    failing = [one for one in result.causes if one.kind in (FAILS, ENDED)]
    if result.code == 1:
        return f"fails: {counted(len(failing), 'cause')}"
    if result.full:
        return "ended early, since a disk is full"
    if result.causes:
        return f"undecided: {counted(len(result.causes), 'cause')}"
    if result.code == 3:
        return f"undecided: less than {100 * ENOUGH:.0f} % of the pairs are covered"
    return "holds"


def _cause_lines(number: int, one: Cause, file: Path) -> Iterator[str]:
    yield f"{number}. {one.kind}, {counted(one.rows, 'configuration')}: {_words(one.fewest)}"
    if one.hung:
        yield "   fewest fields: not looked for, since each try would last until its limit"
    elif not one.smallest:
        yield "   fewest fields: not found within the time"
    if one.alone is False:
        yield "   only in a process that had trained other runs before"
    known = clauses()
    for clause, words in one.clauses.items():
        yield f"   {clause}: {known[clause].statement}" if clause in known else "   the process:"
        yield f"     {words}"
    yield f"   repeat    peft-harness repro {file}"


def _words(row: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in row.items()) or "the default run"


def by_sentence(refusals: list[Refusal]) -> dict[str, list[Refusal]]:
    """Return refusals by their sentences, the most frequent first."""
    found: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        found.setdefault(cause(refusal.sentence), []).append(refusal)
    return {group[0].sentence: group for group in sorted(found.values(), key=len, reverse=True)}


# ---- files ----


def spec_files(result: Result, directory: Path) -> list[Path]:
    """Return the file of the spec of each cause, in the order of the causes."""
    return [
        directory / f"{next(iter(one.clauses)) or 'process'}-{fields.spec(one.fewest).hash}.json"
        for one in result.causes
    ]


def write_specs(result: Result, files: list[Path]) -> None:
    """Write the spec of each cause. files: as `spec_files` returned them."""
    for one, file in zip(result.causes, files, strict=True):
        write_whole(file, json.dumps(fields.spec(one.fewest).to_json(), indent=1) + "\n")
        write_whole(file.parent / ".gitignore", "*\n")


def dumps(result: Result, files: list[Path], seed: int, minutes: float) -> str:
    """Return a result as the text of JSON."""
    return json.dumps(to_json(result, files, seed, minutes), indent=1)


def to_json(result: Result, files: list[Path], seed: int, minutes: float) -> dict[str, Any]:
    """Return a result as session/sweep_schema.json describes it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": describe("cpu"),
        "seed": seed,
        "minutes": minutes,
        "seconds": round(result.seconds, 1),
        "complete": result.share >= ENOUGH and not result.full,
        "configurations": {kind: result.outcomes[kind] for kind in OUTCOMES},
        "several_ranks": result.ranked,
        "equal_to_the_reference": result.equal,
        "stopped_at_a_limit": result.stopped,
        "laws": dict(result.laws),
        "pairs": {"all": result.pairs, "not_refused": result.allowed, "covered": result.covered},
        "causes": [
            {
                "kind": one.kind,
                "clauses": [{"clause": clause or None, "seen": words} for clause, words in one.clauses.items()],
                "configurations": one.rows,
                "fields": one.fewest,
                "smallest": one.smallest,
                "in_a_new_process": one.alone,
                "spec": fields.spec(one.fewest).to_json(),
                "file": str(file),
            }
            for one, file in zip(result.causes, files, strict=True)
        ],
        "known_defects": [
            {"clause": clause, "reason": reason, "configurations": number}
            for (clause, reason), number in result.known.most_common()
        ],
        "refused": [{"fields": one.fields, "sentence": one.sentence, "crash": one.crash} for one in result.refusals],
    }
