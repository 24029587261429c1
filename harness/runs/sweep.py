"""The sweep: configurations of a covering array, each judged, in worker processes, until the time is over.

1. The default run is judged, and each value by itself. Values that are often refused together are trained once. This takes
   a third of the time at most, so that a short sweep has rows, too; what is left of it follows the rows.
2. `harness.runs.pairs` makes a row; `harness.runs.fields` says what its values are. A tenth of the rows has several ranks.
3. A worker judges it (`harness.runs.trial`).
4. If it is refused, the fewest fields that are refused together are found, and no further row has them. Its other pairs are
   owed again. As long as there are rows, half of the workers' time goes into such searches at most.
5. If it fails, the fewest fields that fail in the same way are found. That is a cause. A later row that has these fields and
   fails in the same way belongs to it.
6. A cause is judged once more, in a process that has trained nothing before.
7. A configuration that has not ended after `LIMIT` seconds is stopped with all of its processes, and is a cause of its own.
   Its fewest fields are not looked for, since each try would take as long.

Once all pairs are covered, the array begins anew with other rows. Every second one then has only values that the
independent reference can train, too.
"""

from __future__ import annotations

import itertools
import random
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from harness.errors import OutOfSpace
from harness.laws.completion import REFUSALS, REFUSED_LATE
from harness.processes.workers import Died, Workers
from harness.raised import place_in
from harness.runs.fewest import cause
from harness.runs.pairs import Pairs, Row
from harness.runs.trial import ENDED, FAILS, REFUSED, Finding, Outcome

#: One row in so many has several ranks.
RANKED = 10

#: Seconds that a worker may take to judge a configuration. Eleven runs of two ranks take 30 s on a busy machine.
LIMIT = 180.0

#: Seconds that it may take to find the fewest fields: some twenty runs.
LONG_LIMIT = 300.0

#: The share of the time after which no new configuration is begun. The rest is for finding the fewest fields.
_ROWS_UNTIL = 0.9

#: The share of the time for what comes before the first row.
_ROWS_FROM = 1 / 3

#: The share of the workers' time for finding what is refused together, as long as there are rows.
_REFUSED_SHARE = 0.5

#: How often the fewest fields are looked for, for failures of a clause in the same words. Others count as the first cause.
_SEARCHES = 10

#: How many values that are suspected are trained in one task.
_BATCH = 12

#: The share of the pairs that must be covered.
ENOUGH = 0.95


class Trial(Protocol):
    """What the sweep asks about a configuration (`harness.runs.trial.Trial`)."""

    def judge(self, row: Row) -> Outcome: ...

    def found(self, row: Row, clause: str) -> str: ...

    def fewest(self, row: Row, clause: str, words: str) -> Row: ...

    def forbidden(self, row: Row, sentence: str, trained: bool = True) -> Row: ...

    def refusals(self, rows: list[Row]) -> list[str]: ...


@dataclass
class Cause:
    """Configurations that fail in the same way.

    - clauses: clause -> its first finding, in the smallest configuration; "" if no law found it.
    - kind: of `trial.OUTCOMES`: what became of the law, or of the process.
    - fewest: the fewest fields with which it fails.
    - rows: how many configurations have it.
    - smallest: whether `fewest` is what was looked for, and not a whole row for which the time did not suffice.
    - alone: whether it also fails in a process that has trained nothing before; None if that was not tried.
    - hung: whether it was stopped at a limit, and no fewest fields were looked for.
    """

    clauses: dict[str, str]
    kind: str
    fewest: Row
    rows: int = 1
    smallest: bool = False
    alone: bool | None = None
    hung: bool = False


#: Exceptions by which upstream refuses what it does not support.
_REFUSALS = (*REFUSALS, "ImportError", "ModuleNotFoundError")


@dataclass
class Refusal:
    """Values that upstream, or the installation, refuses together. sentence: its words."""

    fields: Row
    sentence: str

    @property
    def crash(self) -> bool:
        """Whether upstream ends before the first step begins with an exception that is no refusal, such as a TypeError."""
        found = re.search(r"(?:refuses it: |cannot train it \()(?:rank \d+ of \d+: )?(\w+)", self.sentence)
        in_words = any(words in self.sentence for words in REFUSED_LATE)
        return found is not None and found[1] not in _REFUSALS and not in_words


@dataclass
class Result:
    """What a sweep has found.

    - outcomes: key of `trial.OUTCOMES` -> how many configurations.
    - ranked: how many of those that were trained had several ranks.
    - equal: how many were equal to the independent reference.
    - laws: verdict -> how often a law had it.
    - known: (clause, reason) -> how many configurations have that known defect.
    - covered, allowed, pairs: pairs that are covered, that are not refused, and that there are.
    - seconds: how long it took.
    - over: whether it ended because its time was over.
    - full: why it ended early, if a disk was full; "" otherwise. What came afterwards is not judged.
    - stopped: how many configurations had not ended at their limit, and were stopped.
    - longest: for how many seconds the longest task is being done now.
    - phase: what is being done now, in words.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    ranked: int = 0
    equal: int = 0
    laws: Counter[str] = field(default_factory=Counter)
    known: Counter[tuple[str, str]] = field(default_factory=Counter)
    causes: list[Cause] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    covered: int = 0
    allowed: int = 0
    pairs: int = 0
    seconds: float = 0.0
    over: bool = False
    full: str = ""
    stopped: int = 0
    longest: float = 0.0
    phase: str = ""

    @property
    def judged(self) -> int:
        """How many configurations were trained."""
        return sum(number for kind, number in self.outcomes.items() if kind != REFUSED)

    @property
    def share(self) -> float:
        return self.covered / self.allowed if self.allowed else 1.0

    @property
    def code(self) -> int:
        """The exit code: 1 if a clause fails, 3 if something is undecided or too few pairs are covered, else 0."""
        if any(cause.kind in (FAILS, ENDED) and cause.alone is not False for cause in self.causes):
            return 1
        return 3 if self.causes or self.share < ENOUGH else 0


class Doer(Protocol):
    """What does a sweep's tasks (`harness.processes.workers.Workers`)."""

    @property
    def free(self) -> int: ...

    @property
    def busy(self) -> int: ...

    @property
    def longest(self) -> float: ...

    def give(self, task: Any, limit: float, fresh: bool = False) -> None: ...

    def ended(self, seconds: float) -> list[tuple[Any, Any]]: ...


def work(trial: Trial, task: tuple[Any, ...]) -> Any:
    """Do a task, in a worker. Returns OutOfSpace if a disk is full: then a failure says nothing about upstream."""
    name, *arguments = task
    try:
        if name == "confirm":
            row, clause, words = arguments
            return cause(trial.found(row, clause)) == cause(words)
        return getattr(trial, name)(*arguments)
    except OutOfSpace as error:
        return error


#: What is said of a configuration that was stopped.
HUNG = f"it had not ended after {LIMIT:g} s, and was stopped with all of its processes"


def _hangs(words: str) -> bool:
    """Return whether a finding is that a worker, or its ranks, had not ended in time (`harness.processes.ranks`)."""
    return re.search(r"had not ended after|did not answer within", words) is not None


def _where(output: str) -> str:
    """Return in which function of upstream a process was that has printed its stack; "" if that cannot be said."""
    found = place_in(output)
    return f"; it was in {found['file']}:{found['function']}" if found else ""


class Sweep:
    """Judges rows until the time is over.

    - trial: judges a configuration; used in workers, and `forbidden` also here.
    - fields: field -> the names of its values, the default first.
    - unsupported: why a row cannot be trained, as far as can be said without training; "" if nothing speaks against it.
    - changed: the fields of a row that are not the default run's.
    - launch: the field of the processes; "" for none. Its default is one process.
    - suspects: pairs of fields whose values are often refused together.
    - modelled: field -> the values that the independent reference can train, for every second row once all are covered.
    - workers: how many configurations are judged at the same time.
    - elsewhere: makes what does tasks in place of workers of this process (`harness.runs.sweep_elsewhere`).
    - seconds: how long the sweep may take.
    - rows: how many rows of the array are judged at most; None: as many as the time allows.
    - progress: called with the result so far.
    """

    def __init__(
        self,
        trial: Trial,
        fields: Mapping[str, Sequence[str]],
        unsupported: Callable[[Row], str],
        changed: Callable[[Row], Row],
        *,
        directory: Path,
        seed: int = 0,
        workers: int = 2,
        seconds: float = 1800.0,
        rows: int | None = None,
        launch: str = "",
        suspects: Sequence[tuple[str, ...]] = (),
        modelled: Mapping[str, Sequence[str]] | None = None,
        begin: Callable[[], Any] = lambda: None,
        progress: Callable[[Result], Any] = lambda result: None,
        elsewhere: Callable[[], AbstractContextManager[Doer]] | None = None,
    ):
        self._doers: Callable[[], AbstractContextManager[Doer]] = elsewhere or (
            lambda: Workers(partial(work, trial), workers, directory, begin)
        )
        self._trial, self._unsupported, self._changed, self._progress = trial, unsupported, changed, progress
        self._pairs = Pairs(fields, seed)
        self._launch, self._modelled = launch, modelled or {}
        single, *several = fields.get(launch, ("", ""))
        self._single, self._several = {launch: [single]} if launch else {}, {launch: several} if launch else {}
        self._fields, self._suspects = fields, suspects
        self._seconds, self._most = seconds, rows
        self.result = Result()
        self._begun = self._ranked = 0
        self._until = self._rows_until = self._rows_from = 0.0
        self._draw = random.Random(seed)
        self._again = False
        # What workers are asked before further rows: the name of the task, and its arguments.
        self._first: deque[tuple[Any, ...]] = deque()
        self._refused: deque[tuple[Any, ...]] = (
            deque()
        )  # of these, if the searches have not had their share of the time
        self._begun_at: dict[int, float] = {}  # id of a task that is being done -> when it was begun
        self._spent: defaultdict[str, float] = defaultdict(float)  # name of a task -> seconds of workers
        #: What is judged, and what is trained once, before the first row.
        self._begin_with: deque[Row] = deque()
        self._probes: deque[list[Row]] = deque()
        #: (clause, cause of its finding) -> failures that wait until the fewest fields of the first one are known.
        self._waiting: dict[tuple[str, str], list[tuple[Row, Finding]]] = {}
        self._searches: Counter[tuple[str, str]] = Counter()
        self._looked_for: set[str] = set()  # sentences of refusals whose fields are being looked for

    def run(self) -> Result:
        """Judge until the time is over, or the rows are done. Return what was found."""
        began = time.monotonic()
        self._until = until = began + self._seconds
        self._rows_until = rows_until = began + _ROWS_UNTIL * self._seconds
        self._rows_from = began + _ROWS_FROM * self._seconds
        self._suspect()
        with self._doers() as workers:
            while time.monotonic() < until and not self.result.full:
                while workers.free and (task := self._next(time.monotonic() < rows_until)) is not None:
                    name = task[0]
                    workers.give(task, LIMIT if name == "judge" else LONG_LIMIT, fresh=name == "confirm")
                    self._begun_at[id(task)] = time.monotonic()
                if not workers.busy:
                    break
                for task, answer in workers.ended(min(0.5, max(0.0, until - time.monotonic()))):
                    self._spent[task[0]] += time.monotonic() - self._begun_at.pop(id(task))
                    if isinstance(answer, OutOfSpace):
                        self.result.full = str(answer)
                        break
                    getattr(self, f"_{task[0]}_ended")(*task[1:], answer)
                self.result.longest = workers.longest
                self._count(began)
            self.result.over = bool(workers.busy or self._first or self._refused) or time.monotonic() >= rows_until
        for waiting in self._waiting.values():
            self._add(*waiting[0])
        self._count(began)
        return self.result

    def _count(self, began: float) -> None:
        result = self.result
        result.covered, result.allowed, result.pairs = self._pairs.counts()
        result.seconds = time.monotonic() - began
        result.phase = self._phase()
        self._progress(result)

    # ---- what is done next ----

    def _next(self, rows: bool) -> tuple[Any, ...] | None:
        if self._first:
            return self._first.popleft()
        share = self._spent["forbidden"] / (sum(self._spent.values()) or 1.0)
        if self._refused and (not rows or share <= _REFUSED_SHARE):
            return self._refused.popleft()
        task = self._judged_next() if rows else None
        return self._refused.popleft() if task is None and self._refused else task

    def _judged_next(self) -> tuple[Any, ...] | None:
        if time.monotonic() < self._rows_from and (task := self._before_rows()) is not None:
            return task
        if (self._most is None or self._begun < self._most) and (row := self._row()) is not None:
            self._begun += 1
            return "judge", row
        return self._before_rows()

    def _phase(self) -> str:
        """Return what is being done now: values by themselves, suspected pairs of values, or rows."""
        waiting = f", {len(self._refused)} refusals to look into" if self._refused else ""
        if time.monotonic() < self._rows_from and self._begin_with:
            return f"each value by itself, {len(self._begin_with)} left{waiting}"
        if time.monotonic() < self._rows_from and self._probes:
            return f"pairs that may be refused, {sum(map(len, self._probes))} left{waiting}"
        return f"rows of the array, {self._begun} begun{waiting}"

    def _before_rows(self) -> tuple[Any, ...] | None:
        if self._begin_with:
            return "judge", self._begin_with.popleft()
        while self._probes:
            if left := [row for row in self._probes.popleft() if not self._is_refused(row)]:
                return "refusals", left
        return None

    def _row(self) -> Row | None:
        """Return the next row that nothing speaks against. None if there is none."""
        ranked = bool(self._several) and self._ranked * RANKED <= self._begun
        for again in (False, True):
            if again:
                self._again = True
                self._pairs.again()
            modelled = self._modelled if self._again and self._begun % 2 else {}
            # If no pair of such a row is left, any other row is taken.
            for several, fixed in ((ranked, modelled), (ranked, {}), (False, modelled), (False, {})):
                row = self._next_row({**fixed, **(self._several if several else self._single)})
                if row is not None:
                    self._ranked += several
                    return row
        return None

    def _next_row(self, fixed: Mapping[str, Sequence[str]]) -> Row | None:
        while time.monotonic() < self._rows_until and (row := self._pairs.next(fixed)) is not None:
            reason = self._unsupported(row)
            if not reason:
                return row
            self._pairs.take_back(row)
            self._forbid(self._trial.forbidden(row, reason, False), reason)
        return None

    def _suspect(self) -> None:
        """Note what is judged and trained before the first row, and forbid what cannot be trained at all."""
        trained, alone = [], []
        for names in [(), *((name,) for name in self._fields), *self._suspects]:
            for values in itertools.product(*(self._fields[name] for name in names)):
                part = dict(zip(names, values, strict=True))
                if len(self._changed(part)) < len(part) or self._is_refused(part):
                    continue
                if reason := self._unsupported(part):
                    self._pairs.forbid(part)
                    self.result.refusals.append(Refusal(part, reason))
                elif len(part) < 2:
                    alone.append({**{name: values[0] for name, values in self._fields.items()}, **part})
                else:
                    trained.append(part)
        first, *others = alone
        self._draw.shuffle(others)
        self._begin_with.extend([first, *others])
        self._probes.extend(trained[at : at + _BATCH] for at in range(0, len(trained), _BATCH))

    def _is_refused(self, row: Row) -> bool:
        return any(refusal.fields.items() <= row.items() for refusal in self.result.refusals)

    def _refusals_ended(self, rows: list[Row], answer: list[str] | Died) -> None:
        # If a probe has ended its process, a row will, too.
        for row, reason in zip(rows, [] if isinstance(answer, Died) else answer, strict=False):
            if reason and not self._is_refused(row):
                self._refused.append(("forbidden", row, reason))

    def _forbid(self, fields: Row, sentence: str) -> None:
        if not self._is_refused(fields):
            self._pairs.forbid(fields)
            self.result.refusals.append(Refusal(fields, sentence))

    # ---- what has ended ----

    def _judge_ended(self, row: Row, answer: Outcome | Died) -> None:
        if isinstance(answer, Died):
            how = f"{HUNG}{_where(answer.output)}" if answer.hung else answer.how
            how += f" ({answer.output.splitlines()[-1]})" if answer.output and not answer.hung else ""
            answer = Outcome(row, ENDED, [(ENDED, "", how)])
        result = self.result
        result.outcomes[answer.kind] += 1
        result.laws.update(answer.laws)
        result.equal += answer.equal
        if answer.kind == REFUSED:
            self._pairs.take_back(row)
            self._ranked -= self._several_ranks(row)
            key = cause(answer.refused)
            if self._is_refused(row):
                return  # it was begun before that was known
            if key not in self._looked_for:
                self._looked_for.add(key)
                self._refused.append(("forbidden", row, answer.refused))
            return
        self._pairs.cover(row)
        result.ranked += self._several_ranks(row)
        result.known.update(answer.known.items())
        hung = [finding for finding in answer.findings if finding[0] == ENDED and _hangs(finding[2])]
        result.stopped += bool(hung)
        for finding in answer.findings:
            if finding in hung:
                self._add(row, finding, hung=True)
            else:
                self._failed(row, finding)

    def _several_ranks(self, row: Row) -> bool:
        return self._launch in row and row[self._launch] not in self._single[self._launch]

    def _failed(self, row: Row, finding: Finding) -> None:
        """Count a failure to the cause that it has. If no cause is known for it, look for its fewest fields."""
        _, clause, words = finding
        key = (clause, cause(words))
        same = [one for one in self.result.causes if clause in one.clauses and cause(one.clauses[clause]) == key[1]]
        found = next((one for one in same if one.fewest.items() <= row.items()), None)
        if found is None and self._searches[key] >= _SEARCHES and same:
            found = same[0]
        if found is not None:
            found.rows += 1
        elif key in self._waiting:
            self._waiting[key].append((row, finding))
        else:
            self._waiting[key] = [(row, finding)]
            self._searches[key] += 1
            self._first.append(("fewest", row, clause, words))

    def _fewest_ended(self, row: Row, clause: str, words: str, answer: Row | Died) -> None:
        (_, finding), *others = self._waiting.pop((clause, cause(words)))
        if isinstance(answer, Died):
            self._add(row, finding)
        else:
            self._add(row, finding, answer)
            self._first.append(("confirm", answer, clause, words))
        for other in others:
            self._failed(*other)

    def _add(self, row: Row, finding: Finding, fewest: Row | None = None, hung: bool = False) -> None:
        """Note a cause. One that has the same fewest fields gets another clause; what hangs in the same way is one cause."""
        kind, clause, words = finding
        alike = [one for one in self.result.causes if hung and one.hung and cause(one.clauses[""]) == cause(words)]
        if alike:
            alike[0].rows += 1
            return
        fields = self._changed(row) if fewest is None else fewest
        for one in self.result.causes:
            if one.kind == kind and one.fewest == fields and clause not in one.clauses:
                one.clauses[clause] = words
                return
        self.result.causes.append(Cause({clause: words}, kind, fields, smallest=fewest is not None, hung=hung))

    def _confirm_ended(self, row: Row, clause: str, words: str, answer: bool | Died) -> None:
        for one in self.result.causes:
            if one.fewest == row and clause in one.clauses:
                one.alone = bool(one.alone) or answer is True

    def _forbidden_ended(self, row: Row, sentence: str, answer: Row | Died) -> None:
        self._looked_for.discard(cause(sentence))
        fields = self._changed(row) if isinstance(answer, Died) else answer
        self._forbid(fields, sentence)
