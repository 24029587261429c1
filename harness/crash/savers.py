"""Explore a saver of your own: any function that saves into a directory, with the function that loads from it."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.crash.enumeration import MACHINE, PROCESS, State, states
from harness.crash.exploration import Exploration
from harness.crash.outcomes import EQUAL, REFUSED, Answer, Damage, Judged, outcome
from harness.crash.recorder import record
from harness.crash.trees import Tree, key
from harness.errors import UsageError
from harness.processes.workers import Died, Workers
from harness.tensors.checksum import checksum

#: How a directory is loaded: there is one way, the user's function.
LOAD = "load"


def explore(
    save: Callable[[Path], Any],
    load: Callable[[Path], Any],
    before: Callable[[Path], Any] | None = None,
    *,
    name: str = "save",
    crashes: Iterable[str] = (PROCESS, MACHINE),
    at_most: int | None = None,
    seed: int = 0,
    seconds: float = 60.0,
) -> Exploration:
    """Record `save(directory)`, make every state that a crash during it may leave, and judge what `load` makes of each.

        from harness import crash

        print(crash.explore(
            save=lambda directory: accelerator.save_state(directory / "state"),
            load=lambda directory: (accelerator.load_state(directory / "state"), model.state_dict())[1],
        ))

    - save: saves into a directory that exists.
    - load: loads from it, and returns what was loaded: tensors, numbers, text, and lists and dicts of them. It raises if it
      refuses. It runs in a fork of this process, so what it changes is gone afterwards; it must not use a GPU.
    - before: makes an earlier checkpoint in the directory, which is not recorded. None: the directory is empty.
    - name: what the result is called.
    - crashes, at_most, seed: as for `states`.
    - seconds: how long one load may take.

    A state is equal if it loads as what was there before the save, or as what the save wrote. Raises UsageError if the save
    cannot be recorded, or if the whole directory cannot be loaded.
    """
    began = time.monotonic()
    kinds = tuple(crashes)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary).resolve() / "saved"
        directory.mkdir()
        if before is not None:
            before(directory)
        recording = record(save, directory)
        those = states(recording, kinds, at_most, seed)
        trees = [recording.before, recording.after]
        found = Exploration(name, len(states(recording, kinds)), len(those))
        with _team(load, directory) as team:
            references = [_loaded(team, State("", "whole", tree), seconds) for tree in trees]
            if references[1].error:
                raise UsageError(f"{name}: what was saved cannot be loaded: {references[1].error}")
            if not recording.before and not references[0].error:
                found.notes.append("an empty directory loads without an error")
            known = [one.value for one in references if not one.error]
            for state in those:
                found.found.append(_judged(state, _loaded(team, state, seconds), trees, known))
    found.seconds = time.monotonic() - began
    return found


def _judged(state: State, answer: Answer, trees: Sequence[Tree], references: Sequence[Any]) -> Judged:
    whole = key(state.tree) in map(key, trees)
    files = [file for file, node in trees[1].items() if node is not None and state.tree.get(file, 0) != node]
    damaged = [] if whole else [Damage(".", tuple(sorted(files)))]
    what = outcome(answer, references, damaged)
    said = answer.error or ("" if what == EQUAL else "another result than from a whole checkpoint")
    if answer.error and whole and state.tree:
        what = REFUSED  # it was whole
    return Judged(state.digest, state.crash, state.how, LOAD, "", what, said, int(whole))


def _team(load: Callable[[Path], Any], directory: Path) -> Workers:
    """Return a worker that loads a state, each in a new process: what one load leaves behind must not help the next."""

    def begin() -> None:
        if "torch" in sys.modules:
            import torch

            torch.set_num_threads(1)  # the threads of this process are not in its forks

    def work(tree: Mapping[str, Any]) -> Answer:
        shutil.rmtree(directory, ignore_errors=True)
        State("", "", tree).write(directory)
        try:
            return Answer(digest_of(load(directory)))
        except BaseException as error:  # torch.distributed.checkpoint raises one that is no Exception
            return Answer(error=f"{type(error).__name__}: {error}")

    return Workers(work, 1, directory.parent / "output", begin, tasks=1)


def _loaded(team: Workers, state: State, seconds: float) -> Answer:
    team.give(dict(state.tree), seconds, fresh=True)
    ended: list[tuple[Any, Any]] = []
    while not ended:
        ended = team.ended(seconds)
    answer = ended[0][1]
    if isinstance(answer, Died):
        return Answer(error=f"{answer.how}: {answer.output[-200:]}" if answer.output else answer.how)
    assert isinstance(answer, Answer)
    return answer


def digest_of(value: Any) -> str:
    """Return a digest of tensors, arrays, numbers and text, and of lists and dicts of them. Equal bits are equal digests."""
    return hashlib.sha256(repr(_plain(value)).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if "torch" in sys.modules:
        import torch

        if isinstance(value, torch.Tensor):
            value = local(value)
            return [str(value.dtype), tuple(value.shape), checksum(value)]
    if isinstance(value, Mapping):
        return [(str(name), _plain(item)) for name, item in sorted(value.items(), key=lambda pair: str(pair[0]))]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def local(tensor: Any) -> Any:
    """Return the part of a tensor that this process holds."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
