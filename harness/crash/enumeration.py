"""Every state that a crash during a save may leave, made from the recorded operations.

Two kinds of crash:

- The process is killed. All that it has written is in the kernel and reaches the disk. It leaves a prefix of its operations;
  the last write may be cut anywhere.
- The machine stops. What was not fsynced may be missing. The model is that of ALICE: T. S. Pillai, V. Chidambaram,
  R. Alagappan, S. Al-Kiswany, A. C. Arpaci-Dusseau, R. H. Arpaci-Dusseau, "All File Systems Are Not Created Equal: On the
  Complexity of Crafting Crash-Consistent Applications", OSDI 2014, section 3 (the abstract persistence model). There, an
  operation splits into the change of a file's size, its data, and the entries of its directory. Each may be on the disk
  without the others unless an fsync comes between: of the file for its data and size, of the directory for its entries.

The bound. All subsets and orders are too many. What is made:

1. Process: every prefix, and each write cut after its first byte, in its middle, and before its last byte.
2. Machine, at each prefix, one operation that was not synced by then is altered:
   - it is lost, with what needs it;
   - a write of a file left it empty, left its first half, left zeros of its full size, or its first half and zeros.
3. Machine, at each prefix, all files that were not synced are empty, or zeros (delayed allocation: names are on the disk
   before data; "renamed but empty" is among these).
4. Machine, at each prefix, one later operation reached the disk before those between (another order).

Writes of one file that follow each other count as one write in 2 to 4. Data and entries of synced files stay as they are.
Equal states are made once. Two machine faults at the same time, other than 3, are not made.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.crash.operations import (
    CREATE,
    LINK,
    MEET,
    MKDIR,
    RENAME,
    RMDIR,
    SYNC,
    UNLINK,
    WRITE,
    Operation,
    Recording,
    apply,
    parent,
    replay,
)
from harness.crash.trees import Node, digest, key, write_tree

PROCESS, MACHINE = "process", "machine"


@dataclass(frozen=True)
class State:
    """What a crash left in a directory.

    - crash: PROCESS or MACHINE.
    - how: what happened, in words.
    - tree: what the directory holds: path -> bytes of a file, a Link, or None for a directory.
    - at_end: whether all operations were made before the crash.
    """

    crash: str
    how: str
    tree: Mapping[str, Node]
    at_end: bool = False

    @property
    def digest(self) -> str:
        """A name for the content."""
        return digest(self.tree)

    def write(self, directory: Path) -> None:
        """Write the state into a directory, which is made if it is missing."""
        write_tree(self.tree, directory)


def states(
    recording: Recording,
    crashes: Iterable[str] = (PROCESS, MACHINE),
    at_most: int | None = None,
    seed: int = 0,
    at_end: bool = False,
) -> list[State]:
    """Return the states that a crash during a recorded save may leave, each content once.

    - crashes: which kinds of crash.
    - at_most: take a sample of so many, drawn with `seed`. The first state is always in it. None: all.
    - at_end: of a machine's crashes, only those after the whole save. They are the likeliest: writes are synced, by
      default, within 30 s.
    """
    kinds = tuple(crashes)
    found: dict[object, State] = {}
    for crash, make in ((PROCESS, of_process), (MACHINE, of_machine)):
        if crash in kinds:
            for state in make(recording):
                if at_end and crash == MACHINE and not state.at_end:
                    continue
                found.setdefault(key(state.tree), state)
    made = list(found.values())
    if at_most is None or len(made) <= at_most:
        return made
    drawn = random.Random(seed).sample(range(1, len(made)), max(at_most - 1, 0))
    return [made[at] for at in (0, *sorted(drawn))]


# ---- the process is killed ----


def of_process(recording: Recording) -> Iterator[State]:
    """Yield the states that a killed process leaves. Some are equal."""
    tree = dict(recording.before)
    yield State(PROCESS, "killed before the first operation", dict(tree))
    for number, operation in enumerate(recording.operations, start=1):
        if operation.kind == WRITE:
            had = tree.get(operation.path)
            for cut, data in _cuts(had if isinstance(had, bytes) else b"", operation.data):
                how = f"killed in operation {number}: {operation}, {cut}"
                yield State(PROCESS, how, {**tree, operation.path: data})
        apply(tree, operation)
        if operation.kind not in (SYNC, MEET):
            yield State(PROCESS, f"killed after operation {number}: {operation}", dict(tree))


def _cuts(old: bytes, new: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield a file in the middle of a write that turns `old` into `new`."""
    start = len(old) if new.startswith(old) else 0
    length = len(new) - start
    for cut in sorted({1, length // 2, length - 1}):
        if 0 < cut < length:
            end = start + cut
            yield f"{cut} of its {length} bytes written", new[:end] + (b"" if start else old[end:])


# ---- ranks that stop at different points ----


def of_ranks(recordings: Sequence[Recording], at_most: int | None = None, seed: int = 0) -> list[State]:
    """Return the states that the killed ranks of a group leave, each rank stopped after an operation of its own.

    A rank that went on after it had met the others proves that they had come so far, too. Writes are not cut here.

    - recordings: of the ranks. Each began with the same directory.
    - at_most: a sample of so many, drawn with `seed`; None: all.
    """
    ends = [_ends(one.operations) for one in recordings]
    tuples: Iterable[tuple[int, ...]] = itertools.product(*ends)
    total = math.prod(map(len, ends))
    if at_most is not None and total > _MOST_TUPLES:
        generator = random.Random(seed)
        tuples = {tuple(generator.choice(each) for each in ends) for _ in range(_MOST_TUPLES)}
        tuples = sorted(tuples)
    found: dict[object, State] = {}
    found_points: list[tuple[int, ...]] = []
    for each in tuples:
        if _possible(recordings, each):
            done = [operation for one, end in zip(recordings, each, strict=True) for operation in one.operations[:end]]
            tree = replay(recordings[0].before, done)
            how = "; ".join(f"rank {rank}: {_last(recordings[rank].operations[:end])}" for rank, end in enumerate(each))
            if key(tree) not in found:
                found[key(tree)] = State(PROCESS, how, tree)
                found_points.append(each)
    made = list(found.values())
    if at_most is None or len(made) <= at_most:
        return made
    # Half of the sample is of states in which rank 0 has finished: it writes trainer_state.json, so they look whole.
    generator = random.Random(seed)
    last = _ends(recordings[0].operations)[-1]
    finished = [at for at, points in enumerate(found_points) if points[0] == last]
    others = [at for at in range(len(made)) if at not in set(finished)]
    chosen = generator.sample(finished, min(len(finished), (at_most + 1) // 2))
    chosen += generator.sample(others, min(len(others), at_most - len(chosen)))
    return [made[at] for at in sorted(chosen)]


#: Tuples of points that are looked at, if a sample is asked for.
_MOST_TUPLES = 20_000


def _ends(operations: Sequence[Operation]) -> list[int]:
    """Return how many operations a rank may have made: none, or up to one that changes something."""
    changes = [at for at, one in enumerate(operations, start=1) if one.kind not in (SYNC, MEET)]
    return [0, *changes]


def _possible(recordings: Sequence[Recording], ends: Sequence[int]) -> bool:
    met = max(
        sum(one.kind == MEET for one in recording.operations[:end])
        for recording, end in zip(recordings, ends, strict=True)
    )
    for recording, end in zip(recordings, ends, strict=True):
        left = [one.kind for one in recording.operations[end:]]
        # What it had still to do before the meeting that another rank is past.
        missing = met - sum(one.kind == MEET for one in recording.operations[:end])
        meetings = [at for at, kind in enumerate(left) if kind == MEET]
        if missing > 0 and (missing > len(meetings) or any(kind != MEET for kind in left[: meetings[missing - 1]])):
            return False
    return True


def _last(operations: Sequence[Operation]) -> str:
    changes = [one for one in operations if one.kind not in (SYNC, MEET)]
    return f"killed after {len(changes)} operations, {changes[-1]}" if changes else "killed before the first operation"


# ---- the machine stops ----


def of_machine(recording: Recording) -> Iterator[State]:
    """Yield the states that a stopped machine leaves within the bound. Some are equal."""
    operations = merged([one for one in recording.operations if one.kind != MEET])
    for end in range(1, len(operations) + 1):
        done = operations[:end]
        at = f"the machine stopped after operation {end} of {len(operations)}"
        unsynced = [number for number in range(end) if not _synced(operations, number, end)]
        for number in unsynced:
            for what, altered in _altered(operations[number], recording, operations[:number]):
                changed = [*done[:number], *altered, *done[number + 1 :]]
                how = f"{at}: {operations[number]}: {what}"
                yield State(MACHINE, how, replay(recording.before, changed), end == len(operations))
        written = [number for number in unsynced if operations[number].kind == WRITE]
        for what, fill in (("empty", b""), ("zeros", b"\0")):
            changed = list(done)
            for number in written:
                changed[number] = replace(done[number], data=fill * len(done[number].data))
            how = f"{at}: every file not synced is {what}"
            yield State(MACHINE, how, replay(recording.before, changed), end == len(operations))
    for end in range(len(operations)):
        tree = replay(recording.before, operations[:end])
        for later in range(end + 1, len(operations)):
            # A sync holds back what comes after it, if something before it would be missing.
            if any(one.kind == SYNC for one in operations[end:later]):
                break
            moved = dict(tree)
            if apply(moved, operations[later]):
                how = f"the machine stopped after operation {end} of {len(operations)}: {operations[later]} came first"
                yield State(MACHINE, how, moved)


def merged(operations: Sequence[Operation]) -> list[Operation]:
    """Return operations with writes of one file that follow each other put together."""
    found: list[Operation] = []
    for operation in operations:
        if found and operation.kind == WRITE == found[-1].kind and operation.path == found[-1].path:
            found.pop()
        found.append(operation)
    return found


def _synced(operations: Sequence[Operation], number: int, end: int) -> bool:
    """Return whether an operation is on the disk for sure when operations[:end] were made: an fsync came after it."""
    operation = operations[number]
    if operation.kind in (SYNC, MEET):
        return True
    if operation.kind == WRITE:
        path = operation.path
        for later in operations[number + 1 : end]:
            if later.kind == RENAME and path == later.path:
                path = later.to
            elif later.kind == RENAME and path.startswith(f"{later.path}/"):
                path = later.to + path.removeprefix(later.path)
            elif later.kind == SYNC and later.path == path:
                return True
        return False
    folders = {parent(operation.path)} | ({parent(operation.to)} if operation.kind == RENAME else set())
    for later in operations[number + 1 : end]:
        if later.kind == RENAME and later.path in folders:
            folders = {later.to if one == later.path else one for one in folders}
        elif later.kind == SYNC:
            folders.discard(later.path)
    return not folders


def _altered(
    operation: Operation, recording: Recording, earlier: Sequence[Operation]
) -> Iterator[tuple[str, list[Operation]]]:
    """Yield what may be on the disk of an operation that was not synced, in place of it."""
    if operation.kind in (MKDIR, CREATE, RENAME, UNLINK, RMDIR, LINK):
        yield "lost", []
    elif operation.kind == WRITE:
        had = replay(recording.before, earlier).get(operation.path)
        size = len(operation.data)
        half = operation.data[: size // 2]
        if had:
            yield "lost, the file is as before", []
        yield "the file is empty", [replace(operation, data=b"")]
        yield "the first half of the file is there", [replace(operation, data=half)]
        yield "the file is zeros", [replace(operation, data=bytes(size))]
        yield "the second half of the file is zeros", [replace(operation, data=half + bytes(size - len(half)))]
