"""The command `peft-harness checkpoint`."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.text import Text

from harness.checkpoints import outlook
from harness.checkpoints.adapter_directory import FOREIGN, TORN, WHOLE
from harness.checkpoints.choose import Run, checkpoints_in, resumable
from harness.checkpoints.found import Checkpoint
from harness.checkpoints.judge import NAME, judge
from harness.checkpoints.saving import SAVING
from harness.errors import UsageError
from harness.files import reason, write_whole
from harness.fixtures import pretrained
from harness.progress import Progress, screen
from harness.reading import shown_path
from harness.words import counted

SCHEMA_VERSION = 1

#: The exit code of each verdict. A foreign directory is a UsageError, whose code is 2.
CODES = {WHOLE: 0, TORN: 1, FOREIGN: 2}

#: Directories in which runs are looked for, if a directory is none.
_LOOKED_AT = 200

#: Seconds since the last write in which a save may still be going on.
_RECENT = 60


def run(path: Path, model: Path | None, repair: bool, json_file: Path | None) -> int:
    """Judge a checkpoint, or all of an output_dir, print what was found, and write it. Return the verdict's exit code.

    - repair: whether torn checkpoints are moved aside. The verdict is then that of what is left.

    Raises UsageError if no checkpoint is there or none can be read, and for a base that cannot be used.
    """
    if not path.is_dir():
        kind = "is no directory" if path.exists() else "no such directory"
        raise UsageError(f"{shown_path(path)}: {kind}; name a checkpoint, or a run's output_dir")
    if model is not None:
        pretrained.check(model)
    asked, several = _judged(path, model)
    torn = [asked] if asked is not None else [one for one in several.checkpoints if one.path != path]
    moved = _move_aside(torn) if repair else []
    if moved:
        several.checkpoints = [one for one in several.checkpoints if one.path not in {old for old, _ in moved}]
    gone = asked is not None and bool(moved)
    verdict = several.verdict if asked is None or gone else asked.verdict
    if gone and several.use is not None:
        verdict = WHOLE
    use = several.use
    shown = [one for one in [asked] if one is not None and not gone] or ([] if gone else several.checkpoints)
    if verdict != FOREIGN or asked is None:
        _show(path, asked, several, use, moved)
    if json_file is not None:
        write_whole(json_file, json.dumps(to_json(path, verdict, shown, use, moved), indent=1) + "\n")
    if verdict == FOREIGN:
        runs = _runs_below(path)
        known = f"; checkpoints are in {', '.join(map(shown_path, runs))}: name one of these" if runs else ""
        raise UsageError(f"{shown_path(path)}: no checkpoint that can be read: {_reasons(asked, several)}{known}")
    return CODES[verdict]


def _judged(path: Path, model: Path | None) -> tuple[Checkpoint | None, Run]:
    """Return the checkpoint that a directory is (None if it is an output_dir), and the run that it belongs to."""
    below = checkpoints_in(path)
    if not below and (inner := path / "checkpoints").is_dir():
        below = checkpoints_in(inner)  # accelerate's ProjectConfiguration(automatic_checkpoint_naming=True)
    with Progress() as progress:
        if below:
            task = progress.add("checkpoints", len(below))
            found = Run(path)
            for each in below:
                found.checkpoints.append(judge(each, model))
                task.advance(1, each.name)
            saved = judge(path, model)
            if not saved.foreign:
                saved.notes.insert(0, "what save_model wrote beside the checkpoints")
                found.checkpoints.append(saved)
            return None, found
        asked = judge(path, model)
        beside = Run(path.absolute().parent, [asked])
        if NAME.fullmatch(path.resolve().name) or (resumable(asked) and not asked.foreign):
            others = _others(path)
            task = progress.add("checkpoints beside it", len(others))
            for each in others:
                beside.checkpoints.append(judge(each))
                task.advance(1, each.name)
            beside.checkpoints.sort(key=lambda one: -(one.step if one.step is not None else -1))
        return asked, beside


def _runs_below(path: Path) -> list[Path]:
    """Return the first directories in a directory that have checkpoints, such as the runs of a search."""
    try:
        inner = [Path(entry.path) for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    found = []
    for each in sorted(inner)[:_LOOKED_AT]:
        with suppress(UsageError):
            found += [each] if checkpoints_in(each) else []
    return found[:3]


def _others(path: Path) -> list[Path]:
    try:
        parent = path.parent if path.name not in ("", ".", "..") else path.resolve().parent
        return [each for each in checkpoints_in(parent) if each.name != path.resolve().name]
    except UsageError:  # the directory around it may be one that cannot be listed
        return []


def _reasons(asked: Checkpoint | None, several: Run) -> str:
    said = [asked] if asked is not None else several.checkpoints
    return (
        "; ".join((one.foreign or one.why) if asked else f"{one.path.name}: {one.why}" for one in said) or "it is empty"
    )


def _move_aside(checkpoints: list[Checkpoint]) -> list[tuple[Path, Path]]:
    """Rename torn checkpoints of a run to torn-NAME, and return the old and the new paths. Nothing is overwritten."""
    moved = []
    for one in checkpoints:
        if one.verdict != TORN or not resumable(one):
            continue
        if one.path.is_symlink():
            raise UsageError(f"{shown_path(one.path)}: is a link; name the checkpoint itself to have it moved")
        old = one.path.absolute() if not one.path.name else one.path
        old = old.resolve() if old.name in ("", ".", "..") else old
        number, new = 1, old.with_name(f"torn-{old.name}")
        while os.path.lexists(new):
            number += 1
            new = old.with_name(f"torn-{old.name}-{number}")
        try:
            os.rename(old, new)
        except OSError as error:
            raise UsageError(f"{shown_path(old)}: cannot be renamed ({reason(error)})") from None
        one.path = old
        moved.append((old, new))
    return moved


def to_json(
    path: Path, verdict: str, shown: list[Checkpoint], use: Checkpoint | None, moved: list[tuple[Path, Path]]
) -> dict[str, Any]:
    """Return what was found, as checkpoint_schema.json describes it."""
    single = len(shown) == 1 and shown[0].path == path
    prefix = {id(one): "" if single or one.path == path else f"{one.path.name}/" for one in shown}
    return {
        "schema_version": SCHEMA_VERSION,
        "directory": str(path),
        "verdict": verdict,
        "files": [{**vars(file), "file": prefix[id(one)] + file.file} for one in shown for file in one.files],
        "use": None if use is None else str(use.path),
        "checkpoints": [one.to_json() for one in shown],
        "moved": [{"from": str(old), "to": str(new)} for old, new in moved],
        "installed": outlook.releases(),
        "defects": [] if use is None else outlook.defects(use),
    }


# ---- the screen ----


def _show(
    path: Path, asked: Checkpoint | None, several: Run, use: Checkpoint | None, moved: list[tuple[Path, Path]]
) -> None:
    console = screen()

    def say(words: str, style: str = "") -> None:
        console.print(Text(words), style=style or None)

    listed = [one for one in (several.checkpoints if asked is None else [asked]) if one.path not in dict(moved)]
    common = set.intersection(*({*one.not_judged} for one in listed)) if listed else set()
    for one in listed:
        _show_one(one, say, common)
    for words in sorted(common):
        say(f"not judged: {words}")
    for old, new in moved:
        say(f"moved {shown_path(old)} to {shown_path(new.name)}: nothing was deleted")
    if any((path / SAVING).glob("checkpoint-*")):
        say(f"{SAVING} holds a checkpoint that SafeCheckpoints was writing; its next run completes or deletes it")
    if asked is not None and not resumable(asked):
        return
    if use is None:
        say("no whole checkpoint is left to resume from", "red")
        return
    newest = several.checkpoints[0]
    if newest is not use and NAME.fullmatch(newest.path.name):
        say(f"resume_from_checkpoint=True takes {newest.path.name}, which is {newest.verdict}")
    command = (
        f"accelerator.load_state({str(use.path)!r})"
        if "accelerate" in use.kind
        else f"trainer.train(resume_from_checkpoint={str(use.path)!r})"
    )
    say(f"resume from {use.path.name}: {command}")
    known = outlook.defects(use)
    installed = ", ".join(f"{name} {released}" for name, released in outlook.releases().items())
    say(f"under {installed}: {counted(len(known), 'known defect')} may reach it" + (":" if known else ""))
    for each in known:
        words = f"{each['reason']} ({each['clause']}{', ' + each['if'] if each['if'] else ''})"
        say(f"  {words}" + (f"\n    {each['link']}" if each["link"] else ""))


def _show_one(one: Checkpoint, say: Any, common: set[str]) -> None:
    wrote = ", ".join(f"{name} {released}" for name, released in sorted(one.wrote.items()))
    about = [
        one.kind,
        f"step {one.step}" if one.step is not None else "",
        counted(one.ranks, "process", "processes") if one.ranks else "",
        f"written by {wrote}" if wrote else "",
    ]
    where = ", ".join(part for part in about if part)
    say(f"{one.verdict}: {shown_path(one.path)} ({where})", {WHOLE: "green"}.get(one.verdict, "red"))
    for file in one.files:
        if file.state != WHOLE:
            words = "it " if file.state == TORN else ""
            say(f"  {file.file} is {file.state}: {words}{file.why}")
    whole = sum(file.state == WHOLE for file in one.files)
    if whole:
        say(f"  {counted(whole, 'file')} whole")
    if one.foreign:
        say(f"  {one.foreign}")
    for note in one.notes:
        say(f"  {note}")
    for words in one.not_judged:
        if words not in common:
            say(f"  not judged: {words}")
    if one.verdict == TORN and (age := _age(one.path)) < _RECENT:
        say(f"  it was written to {age:.0f} s ago: if a run is saving right now, wait and look again")


def _age(path: Path) -> float:
    try:
        newest = max(entry.stat().st_mtime for entry in os.scandir(path))
    except (OSError, ValueError):
        return _RECENT
    return max(0.0, time.time() - newest)
