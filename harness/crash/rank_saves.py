"""Saves of several ranks: each recorded by itself, stopped at points of their own, and resumed by a new group.

Each rank of the recorded run works in a directory of its own, so that what it wrote is known. A state is what some operations
of each rank leave in one directory.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.crash.enumeration import State, of_ranks
from harness.crash.exploration import Exploration
from harness.crash.operations import Recording
from harness.crash.outcomes import REFUSED, Answer, Judged, damages, outcome, whole_folders, wholes
from harness.crash.recorder import Recorder
from harness.crash.saves import RUN as PLAIN_RUN
from harness.crash.trainer_ways import RESUME, RUN, SavedRun, chooser, fingerprint, quiet, while_saving, working_in
from harness.crash.trees import write_tree
from harness.processes import launch
from harness.processes.group import RanksFailed
from harness.runs.scenarios import spread
from harness.subjects.hf_trainer import HFTrainer


def _spread(strategy: str, ranks: int = 2, **fields: Any) -> SavedRun:
    return SavedRun(spread(PLAIN_RUN.but(lora={"lora_dropout": 0.1}), strategy, ranks, **fields), 4)


#: The saves of several ranks, by name.
RANK_SAVES: dict[str, SavedRun] = {
    "ddp-2": _spread("ddp"),
    "ddp-4": _spread("ddp", 4),
    "fsdp1-2": _spread("fsdp1", state_dict_type="FULL_STATE_DICT"),
    "fsdp2-2": _spread("fsdp2", state_dict_type="FULL_STATE_DICT"),
    "fsdp1-2-sharded": _spread("fsdp1", state_dict_type="SHARDED_STATE_DICT"),
    "fsdp2-2-sharded": _spread("fsdp2", state_dict_type="SHARDED_STATE_DICT"),
    "zero2-2": _spread("zero2"),
    "zero3-2": _spread("zero3"),
}

#: Functions of torch.distributed in which ranks wait for each other. Collectives that are called past these, by DTensor for
#: example, are not seen: then some states are made that no crash leaves.
_MEETINGS = (
    "barrier",
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "reduce_scatter_tensor",
    "gather_object",
    "scatter_object_list",
    "broadcast",
    "broadcast_object_list",
)


def record_ranks(saved: SavedRun, directory: Path, subject: HFTrainer | None = None) -> list[tuple[Recording, Any]]:
    """Train a run of several ranks, and return the recording and the end (`fingerprint`) of each rank.

    Raises RanksFailed if the run ends with an error.
    """
    directory.mkdir(parents=True, exist_ok=True)
    call = functools.partial(_record_rank, subject or HFTrainer(), saved, directory)
    launch.run(call, saved.spec.launch, directory / "ranks")
    return [
        pickle.loads((directory / f"{rank}.recorded").read_bytes())  # noqa: S301 - a rank of this process wrote it
        for rank in range(saved.spec.launch.ranks)
    ]


def _record_rank(subject: HFTrainer, saved: SavedRun, directory: Path) -> None:
    launch.settle(saved.spec.launch)
    rank = int(os.environ["RANK"])
    with working_in(directory / str(rank)), quiet([]):
        RUN.mkdir()
        trainer = subject.build(saved.spec, RUN)
        recorder = Recorder(RUN)
        _note_meetings(recorder.meet)
        while_saving(trainer, recorder, saved.step, saved.step)
        trainer.train()
        made = recorder.recording(), fingerprint(trainer)
    (directory / f"{rank}.recorded").write_bytes(pickle.dumps(made))


def _note_meetings(note: Callable[[], None]) -> None:
    """Call `note` before each meeting of ranks, for the life of this process."""
    import torch.distributed

    for name in _MEETINGS:
        for module in (torch.distributed, torch.distributed.distributed_c10d):
            original = getattr(module, name, None)
            if original is not None:
                setattr(module, name, _noting(original, note))


def _noting(original: Callable[..., Any], note: Callable[[], None]) -> Callable[..., Any]:
    @functools.wraps(original)
    def noted(*arguments: Any, **options: Any) -> Any:
        note()
        return original(*arguments, **options)

    return noted


def explore_ranks(
    name: str, saved: SavedRun, directory: Path, at_most: int, seed: int = 0, subject: HFTrainer | None = None
) -> Exploration:
    """Record the save of several ranks, stop each rank at a point of its own, and judge what resumes.

    - at_most: how many states are judged; a group of ranks is started for each. seed: of the sample.
    """
    began = time.monotonic()
    recorded = record_ranks(saved, directory / "recorded", subject)
    recordings = [recording for recording, _ in recorded]
    before = dict(recordings[0].before)
    for recording in recordings[1:]:
        before |= recording.before
    recordings = [Recording(before, one.operations) for one in recordings]
    everything = of_ranks(recordings)
    those = of_ranks(recordings, at_most, seed)
    found = Exploration(name, len(everything), len(those))
    whole = everything[-1]
    known = wholes(before, whole.tree)
    resume = functools.partial(resumed, subject or HFTrainer(), saved, directory)
    references = [[end for _, end in recorded]]
    for number, tree in enumerate((before, whole.tree)):
        answer = resume(f"whole-{number}", State("", "", tree))
        if answer.error:
            found.notes.append(f"{RESUME}: a whole checkpoint is refused: {answer.error[:300]}")
        elif answer.value not in references:
            references.append(answer.value)
            note = f"{RESUME}: going on from a whole checkpoint differs from the undisturbed run"
            found.notes += [note] if note not in found.notes else []
    for number, state in enumerate(those):
        torn, left = damages(state.tree, known), len(whole_folders(state.tree, known))
        answer = resume(str(number), state)
        what = outcome(answer, references, torn.values())
        if answer.error and not torn:
            what = REFUSED
        said = answer.error or ("" if answer.value in references else "another run than from a whole checkpoint")
        found.found.append(Judged(state.digest, state.crash, state.how, RESUME, "", what, said, left))
    found.seconds = time.monotonic() - began
    return found


def resumed(subject: HFTrainer, saved: SavedRun, directory: Path, name: str, state: State) -> Answer:
    """Resume a state in a new group of ranks. The value is what each rank ended with."""
    place = directory / name
    write_tree(state.tree, place / RUN)
    try:
        launch.run(functools.partial(_resume_rank, subject, saved, place), saved.spec.launch, place / "ranks")
    except RanksFailed as failed:
        return Answer(error=str(failed).partition("\n")[0])
    finally:
        said = [json.loads(file.read_text()) for file in sorted(place.glob("*.answer"))]
        shutil.rmtree(place, ignore_errors=True)
    return Answer([one["end"] for one in said], warnings=tuple(text for one in said for text in one["warnings"]))


def _resume_rank(subject: HFTrainer, saved: SavedRun, directory: Path) -> None:
    launch.settle(saved.spec.launch)
    said: list[str] = []
    with working_in(directory), quiet(said):
        trainer = subject.build(saved.spec, RUN)
        trainer.train(resume_from_checkpoint=chooser(saved)(str(RUN)))
        end = fingerprint(trainer)
    (directory / f"{os.environ['RANK']}.answer").write_text(json.dumps({"end": end, "warnings": said}))
