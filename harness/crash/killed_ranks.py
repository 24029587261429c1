"""Runs of several ranks, killed for real while they save, and resumed by a new group.

Here all ranks work in one directory, as those of users do, and one of them gets SIGKILL once the directory has seen a number
of file operations. The group then ends the others, wherever they are. So it can be used for savers whose rank 0 renames what
the others wrote, of which `rank_saves` cannot make states.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.crash.enumeration import PROCESS, State
from harness.crash.exploration import Exploration
from harness.crash.outcomes import REFUSED, Judged, damages, folders, outcome, whole_folders, wholes
from harness.crash.rank_saves import resumed
from harness.crash.recorder import Recorder
from harness.crash.trainer_ways import RESUME, RUN, SavedRun, fingerprint, quiet, while_saving, working_in
from harness.crash.trees import Node, Tree, read_tree
from harness.errors import UsageError
from harness.processes import launch
from harness.processes.group import RanksFailed
from harness.subjects.hf_trainer import HFTrainer


class _Killing(Recorder):
    """A recorder that ends its process once so many operations were made, or as the save ends; 0: never."""

    def __init__(self, directory: Path, number: int):
        super().__init__(directory)
        self._number = number

    def _poll(self) -> None:
        super()._poll()
        if self._number and len(self._operations) >= self._number:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        with super().on():
            yield
        if self._number:
            os.kill(os.getpid(), signal.SIGKILL)

    @property
    def made(self) -> int:
        return len(self._operations)


def explore_killed(
    name: str,
    saved: SavedRun,
    directory: Path,
    at_most: int,
    seed: int,
    subject: HFTrainer,
    told: Callable[[int, int, str], Any] = lambda done, total, text: None,
) -> Exploration:
    """Kill a run of several ranks at points of its save, and judge what resumes.

    - at_most: how many points; two groups of ranks are started for each. seed: of the points, and of the rank that is killed.
    - told: called with how many points are done, of how many, and which save.

    Raises UsageError if the run does not end when it is not killed.
    """
    began = time.monotonic()
    ranks = saved.spec.launch.ranks
    try:
        undisturbed = _trained(saved, directory / "undisturbed", subject, -1, 0)
    except RanksFailed as failed:
        raise UsageError(f"the save {name} cannot be judged: {str(failed).partition(chr(10))[0]}") from None
    whole = read_tree(directory / "undisturbed" / RUN)
    known = wholes(_sizes(whole))
    made = max(one["made"] for one in undisturbed)
    draw = random.Random(seed)
    numbers = sorted(draw.sample(range(1, made + 1), min(at_most, made)))
    found = Exploration(name, made * ranks, len(numbers))
    references = [[one["end"] for one in undisturbed]]
    resume = functools.partial(resumed, subject, saved, directory)
    for step in [each for each in folders(whole) if _step(each) <= saved.step][-2:]:
        until = {where: node for where, node in whole.items() if _of_a_checkpoint(where, _step(step))}
        answer = resume(step, State("", "", until))
        if answer.error:
            found.notes.append(f"{RESUME}: a whole {step} is refused: {answer.error[:300]}")
        elif answer.value not in references:
            references.append(answer.value)
            found.notes.append(f"{RESUME}: going on from a whole {step} differs from the undisturbed run")
    for at, number in enumerate(numbers):
        rank, place = draw.randrange(ranks), directory / f"killed-{number}"
        how = f"rank {rank} killed after operation {number} of {made}, or as its save ended"
        with contextlib.suppress(RanksFailed):
            _trained(saved, place, subject, rank, number)
        tree = read_tree(place / RUN)
        shutil.rmtree(place)
        torn, left = damages(_sizes(tree), known), len(whole_folders(_sizes(tree), known))
        answer = resume(f"resumed-{number}", State(PROCESS, how, tree))
        what = REFUSED if answer.error and not torn else outcome(answer, references, torn.values())
        said = answer.error or ("" if answer.value in references else "another run than from a whole checkpoint")
        found.found.append(Judged(State(PROCESS, how, tree).digest, PROCESS, how, RESUME, "", what, said, left))
        told(at + 1, len(numbers), name)
    found.seconds = time.monotonic() - began
    return found


def _step(folder: str) -> int:
    return int(folder.rpartition("-")[2])


def _of_a_checkpoint(where: str, until: int) -> bool:
    """Return whether a path is that of a checkpoint, or in one, of a step up to `until`."""
    top = where.partition("/")[0]
    return bool(folders({top: None})) and _step(top) <= until


def _sizes(tree: Mapping[str, Node]) -> Tree:
    """Return a tree with the size of each file in place of its bytes: those of two runs differ in times and ports.

    A killed process leaves beginnings of files, so the size tells which are whole.
    """
    return {where: str(len(node)).encode() if isinstance(node, bytes) else node for where, node in tree.items()}


def _trained(saved: SavedRun, place: Path, subject: HFTrainer, killed: int, number: int) -> list[dict[str, Any]]:
    """Train a run, and return what each rank ended with. Raises RanksFailed if it is killed.

    - killed: the rank that is killed in the save after `number` operations; -1: none.
    """
    (place / RUN).mkdir(parents=True)
    call = functools.partial(_train_rank, subject, saved, place, killed, number)
    launch.run(call, saved.spec.launch, place / "ranks")
    return [json.loads(file.read_text()) for file in sorted(place.glob("*.end"))]


def _train_rank(subject: HFTrainer, saved: SavedRun, place: Path, killed: int, number: int) -> None:
    launch.settle(saved.spec.launch)
    rank = int(os.environ["RANK"])
    with working_in(place), quiet([]):
        trainer = subject.build(saved.spec, RUN)
        recorder = _Killing(RUN, number if rank == killed else 0)
        if rank in (killed, 0):
            while_saving(trainer, recorder, saved.step, saved.step)
        trainer.train()
        (place / f"{rank}.end").write_text(json.dumps({"end": fingerprint(trainer), "made": recorder.made}))
