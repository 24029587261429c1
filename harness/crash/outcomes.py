"""What became of a crash state that was loaded, and how the outcomes of many are counted."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.crash.trees import Node, Tree, below, key

#: Outcomes, best first.
EQUAL, NAMED, WARNED, REFUSED, SILENT = "equal", "named", "warned", "refused", "silent"
OUTCOMES = (EQUAL, NAMED, WARNED, REFUSED, SILENT)

MEANING = {
    EQUAL: "bit-equal to going on from a whole checkpoint",
    NAMED: "refused, naming the file and the checkpoint to use",
    WARNED: "another result, and a warning that names the file",
    REFUSED: "refused otherwise",
    SILENT: "another result, in silence",
}


@dataclass(frozen=True)
class Damage:
    """What a crash did to a checkpoint.

    - folder: the checkpoint's directory; "." if the whole directory is the checkpoint.
    - files: those that are missing or not whole, relative to it.
    - use: the newest whole checkpoint beside it; "" if there is none.
    """

    folder: str
    files: tuple[str, ...]
    use: str = ""

    def is_named(self, text: str) -> bool:
        """Return whether a text names the checkpoint and one of its damaged files."""
        folder = self.folder == "." or self.folder in text
        # Of a checkpoint of which nothing is there, the directory says all.
        return folder and (not self.files or any(_file_name(file) in text for file in self.files))

    def is_answered(self, text: str) -> bool:
        """Return whether a text also names the checkpoint to use, if there is one."""
        return self.is_named(text) and self.use in text


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]


@dataclass(frozen=True)
class Answer:
    """What loading a state gave.

    - value: compared with the references; None if it was refused.
    - error: of a refusal, as "Type: message".
    - warnings: given on the way.
    - went_on_from: the step that a resumed run began at, if it is known.
    """

    value: Any = None
    error: str = ""
    warnings: tuple[str, ...] = ()
    went_on_from: int | None = None


@dataclass(frozen=True)
class Judged:
    """One state, loaded in one way.

    - state: its digest. how, crash: see `State`.
    - way: how it was loaded, such as "resume=True".
    - folder: the checkpoint that was named; "" if none was.
    - outcome: one of OUTCOMES.
    - said: the error, or how the result differs.
    - left: how many whole checkpoints the state has.
    """

    state: str
    crash: str
    how: str
    way: str
    folder: str
    outcome: str
    said: str
    left: int = 0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def wholes(*trees: Mapping[str, Node]) -> dict[str, list[Tree]]:
    """Return each checkpoint's directory at the top of whole trees -> what it holds when it is whole."""
    found: dict[str, list[Tree]] = {}
    for tree in trees:
        for where in folders(tree):
            inside = below(tree, where)
            if inside is not None and key(inside) not in map(key, found.get(where, ())):
                found.setdefault(where, []).append(inside)
    return found


def folders(tree: Mapping[str, Node]) -> list[str]:
    """Return the checkpoint directories of a tree, the oldest first."""
    names = [where for where, node in tree.items() if node is None and "/" not in where]
    steps = [(int(name.rpartition("-")[2]), name) for name in names if _is_checkpoint(name)]
    return [name for _, name in sorted(steps)]


def _is_checkpoint(name: str) -> bool:
    start, _, step = name.rpartition("-")
    return start == "checkpoint" and step.isascii() and step.isdigit()


def whole_folders(tree: Mapping[str, Node], known: Mapping[str, Sequence[Tree]]) -> list[str]:
    """Return the checkpoints of a state that are as a save left them, the oldest first."""
    return [
        name
        for name in folders(tree)
        if (inside := below(tree, name)) is not None and key(inside) in map(key, known.get(name, ()))
    ]


def damages(tree: Mapping[str, Node], known: Mapping[str, Sequence[Tree]]) -> dict[str, Damage]:
    """Return each checkpoint of a state that is not whole, with what is damaged. known: as `wholes` returns it."""
    whole = whole_folders(tree, known)
    found = {}
    for name in folders(tree):
        if name not in whole:
            inside = below(tree, name) or {}
            versions = known.get(name) or [{}]
            # A directory that a save writes over is compared with what the save would have made of it.
            files = [f for f, node in versions[-1].items() if node is not None and inside.get(f, 0) != node]
            found[name] = Damage(name, tuple(sorted(files)), whole[-1] if whole else "")
    return found


def outcome(answer: Answer, references: Collection[Any], damaged: Iterable[Damage]) -> str:
    """Return what became of a state.

    - references: the values that going on from a whole checkpoint may give.
    - damaged: the checkpoints that are not whole.
    """
    torn = list(damaged)
    if answer.error:
        # Where no checkpoint was begun there is nothing to name.
        return NAMED if not torn or any(one.is_answered(answer.error) for one in torn) else REFUSED
    if answer.value in references:
        return EQUAL
    return WARNED if any(one.is_named(text) for one in torn for text in answer.warnings) else SILENT


def counted_by_way(judged: Iterable[Judged]) -> dict[str, Counter[str]]:
    """Return way -> outcome -> how many states. Of a state that was loaded from several checkpoints, the worst counts."""
    worst: dict[tuple[str, str], str] = {}
    for one in judged:
        at = (one.way, one.state)
        worst[at] = max(worst.get(at, EQUAL), one.outcome, key=OUTCOMES.index)
    found: dict[str, Counter[str]] = {}
    for (way, _), what in worst.items():
        found.setdefault(way, Counter())[what] += 1
    return found
