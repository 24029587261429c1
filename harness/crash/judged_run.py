"""The crash states of a Trainer's save, each loaded in each way and judged.

1. The run is trained and its save recorded (`trainer_ways.record_run`).
2. The states are enumerated (`enumeration.states`).
3. What a run may come to is found: the undisturbed run's end, and what going on from each whole checkpoint gives.
4. Each state is loaded in each way. A checkpoint that two states have in common is loaded once by name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.crash.enumeration import MACHINE, PROCESS, State, states
from harness.crash.exploration import Exploration
from harness.crash.outcomes import (
    EQUAL,
    REFUSED,
    Answer,
    Judged,
    damages,
    outcome,
    whole_folders,
    wholes,
)
from harness.crash.trainer_ways import BEST, INFERENCE, PATH, RESUME, Loader, Recorded, SavedRun, ways_of, working_in
from harness.crash.trees import below, key
from harness.subjects.hf_trainer import HFTrainer


class Judge:
    """Judges crash states of one recorded save, in the current directory.

    - saved, recorded: the save.
    - subject: who loads the states.
    """

    def __init__(self, saved: SavedRun, recorded: Recorded, subject: HFTrainer | None = None):
        self._loader = Loader(saved, subject)
        self._trees = (recorded.recording.before, recorded.recording.after)
        self.known = wholes(*self._trees)
        self._answers: dict[Any, Answer] = {}
        self.references: dict[str, list[Any]] = {RESUME: [recorded.end], PATH: [recorded.end], INFERENCE: [], BEST: []}
        self.notes: list[str] = []
        self._prepare()

    def _prepare(self) -> None:
        """Find out what a run may come to: load the whole directories."""
        for tree in self._trees:
            for way, folder in ways_of(tree, lambda name: True):
                if way == RESUME and not whole_folders(tree, self.known):
                    continue
                answer = self._load(tree, way, folder)
                if answer.error:
                    self._note(f"{way}: a whole checkpoint is refused: {answer.error}")
                elif answer.value not in self.references[way]:
                    self.references[way].append(answer.value)
                    if way in (RESUME, PATH):
                        self._note(f"{way}: going on from a whole checkpoint differs from the undisturbed run")

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def _load(self, tree: Mapping[str, Any], way: str, folder: str) -> Answer:
        # What is named is loaded from its own directory; resume=True looks at all of them.
        inside = tree if way == RESUME else below(tree, folder)
        assert inside is not None
        at = (way, folder, key(inside))
        if at not in self._answers:
            self._answers[at] = self._loader.load(tree, way, folder)
        return self._answers[at]

    def judge(self, state: State, ways: Iterable[str] | None = None) -> Iterator[Judged]:
        """Yield what becomes of a state in each way; None: all ways."""
        torn = damages(state.tree, self.known)
        left = len(whole_folders(state.tree, self.known))
        for way, folder in ways_of(state.tree, lambda name: name in torn):
            if ways is not None and way not in ways:
                continue
            answer = self._load(state.tree, way, folder)
            damaged = list(torn.values()) if way == RESUME else [torn[folder]] if folder in torn else []
            references = self.references[way]
            what = outcome(answer, references, damaged)
            if answer.error and not damaged and (left or way != RESUME):
                what = REFUSED  # a whole checkpoint was refused
            said = answer.error or self._difference(answer, references, what)
            yield Judged(state.digest, state.crash, state.how, way, folder, what, said, left)

    def _difference(self, answer: Answer, references: list[Any], what: str) -> str:
        if what == EQUAL:
            start = "" if answer.went_on_from is None else f"from step {answer.went_on_from}"
            return start
        if not references or not isinstance(answer.value, dict):
            return "there is no whole checkpoint to compare with"
        fewest = min(
            ([part for part in answer.value if answer.value[part] != one.get(part)] for one in references), key=len
        )
        return f"another {', '.join(fewest)} than from a whole checkpoint"


def explore_states(
    name: str,
    saved: SavedRun,
    recorded: Recorded,
    at_most: int | None = None,
    crashes: Iterable[str] = (PROCESS, MACHINE),
    seed: int = 0,
    at_end: bool = False,
    ways: Iterable[str] | None = None,
    subject: HFTrainer | None = None,
) -> Exploration:
    """Judge states of a recorded save in this process, and return what became of them.

    - crashes, at_most, seed, at_end: as for `states`.
    - ways: in which states are loaded; None: all.
    - subject: who loads them.
    """
    chosen = states(recorded.recording, crashes, at_most, seed, at_end)
    found = Exploration(name, len(states(recorded.recording, crashes)), len(chosen))
    with tempfile.TemporaryDirectory() as temporary, working_in(Path(temporary)):
        judge = Judge(saved, recorded, subject)
        for state in chosen:
            found.found += judge.judge(state, ways)
        found.notes = judge.notes
    return found
