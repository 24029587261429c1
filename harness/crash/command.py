"""`peft-harness crash`: judge the crash states of the Trainer's saves."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from harness.crash import show
from harness.crash.enumeration import MACHINE, PROCESS
from harness.crash.exploration import Exploration
from harness.crash.outcomes import REFUSED, SILENT
from harness.crash.parallel import Sample, explore_all
from harness.crash.saves import SAVES
from harness.crash.trainer_ways import SavedRun
from harness.environment import describe
from harness.errors import UsageError
from harness.files import write_whole
from harness.fixtures import models
from harness.processes.cuda_free_fork import cuda_untouched
from harness.processes.imports import import_upstream
from harness.processes.workers import prepare
from harness.progress import Progress, screen
from harness.subjects import trainer_keywords
from harness.subjects.hf_trainer import HFTrainer
from harness.user_code import quoted

SCHEMA_VERSION = 1


def crash(
    scenarios: Sequence[str],
    sample: Sample,
    workers: int,
    callbacks: Sequence[str],
    resume_with: str,
    file: Path | None,
    html: Path | None,
    plot: Path | None,
) -> int:
    """Judge crash states, print what became of them, and return the exit code: 1 if one is silent or refused without help.

    - scenarios: globs over the names of `SAVES`; none: all.
    - callbacks: "module:class" of TrainerCallbacks that each run has.
    - resume_with: "module:function", as of `SavedRun`; "": none.
    - file, html, plot: where to write the result; None: nowhere.
    """
    chosen = _chosen(scenarios, callbacks, resume_with)
    began = time.monotonic()
    import_upstream()
    with cuda_untouched():
        _require_code(callbacks, resume_with)
        prepare()
    console = screen()
    for name, saved in list(chosen.items()):
        if reason := HFTrainer().unsupported(saved.spec):
            console.print(f"{name}: not judged, it needs {reason}", highlight=False, markup=False)
            del chosen[name]
    if not chosen:
        raise UsageError("no save is left to judge")
    # This process forks, so no thread may print.
    with tempfile.TemporaryDirectory() as root, Progress(what="crash", forks=True) as progress:
        explored = list(explore_all(chosen, Path(root), workers, sample, progress.update))
    show.show(console, explored, time.monotonic() - began)
    if file is not None:
        write_whole(file, json.dumps(to_json(explored), indent=1) + "\n")
    if html is not None:
        write_whole(html, show.page(explored, describe()))
    if plot is not None:
        show.plot(explored).savefig(plot, bbox_inches="tight", dpi=150)
    return code(explored)


def code(explored: Sequence[Exploration]) -> int:
    """Return the exit code of explorations."""
    return int(any(one.outcome in (SILENT, REFUSED) for each in explored for one in each.found))


def to_json(explored: Sequence[Exploration]) -> dict[str, object]:
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": describe(),
        "scenarios": [one.to_json() for one in explored],
    }


def _chosen(globs: Sequence[str], callbacks: Sequence[str], resume_with: str) -> dict[str, SavedRun]:
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in SAVES):
            raise UsageError(f"--scenario {glob!r} matches no save; there are {', '.join(SAVES)}")
    for option, names in (("--callback", callbacks), ("--resume-with", [resume_with] if resume_with else [])):
        for name in names:
            if not all(name.partition(":")[::2]):
                raise UsageError(f"{option} {name!r} is not of the form MODULE:NAME")
    chosen: Mapping[str, SavedRun] = {
        name: saved for name, saved in SAVES.items() if not globs or any(fnmatchcase(name, glob) for glob in globs)
    }
    return {name: _with(saved, callbacks, resume_with) for name, saved in chosen.items()}


def _require_code(callbacks: Sequence[str], resume_with: str) -> None:
    """Raise UsageError if the user's code cannot be imported or is of another kind: states would look refused by it."""
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
