"""`peft-harness crash`: judge the crash states of the Trainer's saves."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from harness.crash import show, trainers
from harness.crash.enumeration import MACHINE, PROCESS
from harness.crash.exploration import Exploration
from harness.crash.killed_ranks import explore_killed
from harness.crash.outcomes import REFUSED, SILENT
from harness.crash.parallel import Sample, explore_all
from harness.crash.rank_saves import RANK_SAVES
from harness.crash.saves import SAVES
from harness.crash.trainer_ways import SavedRun
from harness.environment import describe
from harness.errors import UsageError
from harness.files import write_whole
from harness.fixtures import models
from harness.processes import ranks
from harness.processes.cuda_free_fork import cuda_untouched
from harness.processes.imports import import_upstream
from harness.processes.workers import prepare
from harness.progress import Progress, screen
from harness.subjects import trainer_keywords
from harness.user_code import quoted

SCHEMA_VERSION = 1

#: Points of a save of several ranks. Each costs two groups of ranks, some four seconds.
_POINTS = 16


def crash(
    scenarios: Sequence[str],
    sample: Sample,
    workers: int,
    callbacks: Sequence[str],
    resume_with: str,
    file: Path | None,
    html: Path | None,
    plot: Path | None,
    subject: str = trainers.UPSTREAMS,
    safe: bool = False,
) -> int:
    """Judge crash states, print what became of them, and return the exit code: 1 if one is silent or refused without help.

    - scenarios: globs over the names of `SAVES` and `RANK_SAVES`; none: all of `SAVES`. Those of several ranks are killed for
      real, at `_POINTS` points unless the sample says how many.
    - callbacks: "module:class" of TrainerCallbacks that each run has.
    - resume_with: "module:function", as of `SavedRun`; "": none.
    - file, html, plot: where to write the result; None: nowhere.
    - subject, safe: whose saves, as of `trainers.trainer`.
    """
    chosen = _chosen(scenarios, callbacks, resume_with)
    began = time.monotonic()
    import_upstream()
    with cuda_untouched():
        _require_code(callbacks, resume_with)
        prepare()
    judged = trainers.trainer(subject, safe)
    console = screen()
    for name, saved in list(chosen.items()):
        if reason := judged.unsupported(saved.spec):
            console.print(f"{name}: not judged, it needs {reason}", highlight=False, markup=False)
            del chosen[name]
    if not chosen:
        raise UsageError("no save is left to judge")
    # This process forks, so no thread may print.
    single = {name: saved for name, saved in chosen.items() if not saved.spec.launch.several}
    with tempfile.TemporaryDirectory() as root, Progress(what="crash", forks=True) as progress:
        if len(single) < len(chosen):
            ranks.prepare(pristine=True)
        explored = list(explore_all(single, Path(root), workers, sample, judged, progress.update)) if single else []
        for number, name in enumerate(each for each in chosen if each not in single):
            place, points = Path(root, f"ranks-{number}"), sample.at_most or _POINTS
            explored.append(explore_killed(name, chosen[name], place, points, sample.seed, judged, progress.update))
    show.show(console, explored, time.monotonic() - began, judged.name)
    if file is not None:
        write_whole(file, json.dumps(to_json(explored, judged.name), indent=1) + "\n")
    if html is not None:
        write_whole(html, show.page(explored, describe(), judged.name))
    if plot is not None:
        show.plot(explored).savefig(plot, bbox_inches="tight", dpi=150)
    return code(explored)


def code(explored: Sequence[Exploration]) -> int:
    """Return the exit code of explorations."""
    return int(any(one.outcome in (SILENT, REFUSED) for each in explored for one in each.found))


def to_json(explored: Sequence[Exploration], subject: str) -> dict[str, object]:
    return {
        "schema_version": SCHEMA_VERSION,
        "subject": subject,
        "environment": describe(),
        "scenarios": [one.to_json() for one in explored],
    }


def _chosen(globs: Sequence[str], callbacks: Sequence[str], resume_with: str) -> dict[str, SavedRun]:
    saves = {**SAVES, **RANK_SAVES}
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in saves):
            raise UsageError(f"--scenario {glob!r} matches no save; there are {', '.join(saves)}")
    for option, names in (("--callback", callbacks), ("--resume-with", [resume_with] if resume_with else [])):
        for name in names:
            if not all(name.partition(":")[::2]):
                raise UsageError(f"{option} {name!r} is not of the form MODULE:NAME")
    chosen: Mapping[str, SavedRun] = {
        name: saved
        for name, saved in saves.items()
        if any(fnmatchcase(name, glob) for glob in globs) or (not globs and name in SAVES)
    }
    return {name: _with(saved, callbacks, resume_with) for name, saved in chosen.items()}


def _require_code(callbacks: Sequence[str], resume_with: str) -> None:
    """Raise UsageError if the user's code cannot be imported or is no function. Crash states would look refused by it."""
    trainer_keywords.callbacks({"callbacks": list(callbacks)})
    if resume_with and not callable(found := models.load_object(resume_with)):
        raise UsageError(f"--resume-with {resume_with}: is {quoted(found)}, which cannot be called; name a function")


def _with(saved: SavedRun, callbacks: Sequence[str], resume_with: str) -> SavedRun:
    if callbacks:
        saved = dataclasses.replace(
            saved,
            spec=saved.spec.but(trainer={"callbacks": list(callbacks)}),
            before=saved.before and saved.before.but(trainer={"callbacks": list(callbacks)}),
        )
    return dataclasses.replace(saved, resume_with=resume_with)


KINDS = {"process": (PROCESS,), "machine": (MACHINE,), "both": (PROCESS, MACHINE)}
