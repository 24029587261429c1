"""A forked process that runs some cases, with or without a mutant, and writes down how each ended.

Its parent has imported upstream and collected the suites, but never trains: after training a process can no longer be
forked (`harness.processes.fork_server`). The child forks the ranks of a run in turn, so each rank has the mutant, too.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

from harness.mutants.digest import digest
from harness.processes.rank import die_with_parent
from harness.trace import Trace
from harness.verdict import Case
from harness.where import hint

RECORD, OUTPUT = "record.jsonl", "output.txt"


@dataclass
class Trained:
    """A training run, reduced to what the usual checks read and to a digest.

    - spec: a hash of the spec and the subject.
    - digest: of everything that the trace holds (`harness.mutants.digest`).
    - error: the error that ended the run, if any.
    - losses, norms: loss and gradient norm by logged step.
    """

    spec: str
    digest: str
    error: str | None
    train_loss: float | None
    losses: dict[int, float]
    norms: dict[int, float]


@dataclass
class Record:
    """What a child has written.

    - cases: the cases that it judged.
    - trained: the runs that it trained.
    - digests: digest by name of each run of the scenario table, if it trained those (`harness.mutants.equivalent`).
    - running: the case that it was in when it ended, "" if it ran to its end.
    - error: the error that ended it, "" if there was none.
    - seconds: how long it ran.
    - watched: what Watch saw of the mutant, if that was measured (`harness.mutants.watched.Watched`).
    """

    cases: list[Case] = field(default_factory=list)
    trained: list[Trained] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    running: str = "the start"
    error: str = ""
    seconds: float = 0.0
    watched: dict[str, Any] = field(default_factory=dict)


def read(directory: Path) -> Record:
    """Read the record in a child's directory, as far as it was written."""
    record = Record()
    file = directory / RECORD
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            body = json.loads(line)
        except ValueError:
            continue  # The child was killed while it wrote its last line.
        kind, value = body.popitem()
        if kind == "case":
            record.cases.append(Case(**value))
        elif kind == "trained":
            for series in ("losses", "norms"):
                value[series] = {int(step): number for step, number in value[series].items()}
            record.trained.append(Trained(**value))
        elif kind == "digest":
            record.digests.update(value)
        elif kind == "watched":
            record.watched = value
        elif kind == "running":
            record.running = value
        elif kind == "error":
            record.error = value
        else:
            record.seconds, record.running = value, ""
    return record


class Writer:
    """Writes a child's record, one line for each event, as it happens."""

    def __init__(self, directory: Path):
        self._stream = (directory / RECORD).open("a", encoding="utf-8", buffering=1)

    def __call__(self, kind: str, value: Any) -> None:
        self._stream.write(json.dumps({kind: value}) + "\n")

    def trained(self, subject: str, trace: Trace) -> None:
        """Write down a training run."""
        self("trained", asdict(summary(subject, trace)))


def summary(subject: str, trace: Trace) -> Trained:
    """Reduce a trace to what the usual checks read. subject: the name of the one who trained it."""
    key = hashlib.sha256(f"{subject} {trace.spec.hash}".encode()).hexdigest()[:16]
    return Trained(key, digest(trace), trace.error, trace.output.get("training_loss"), trace.losses, trace.grad_norms)


def start(directory: Path, work: Callable[[Writer], Any]) -> int:
    """Fork a child that does `work` in a new directory. Return its process id, which is also its group's."""
    directory.mkdir(parents=True)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    run_child(directory, work, parent)


def run_child(directory: Path, work: Callable[[Writer], Any], parent: int) -> NoReturn:
    """Do the work in this process, which is the child, and end the process. It ends with its parent, too."""
    status = 1
    started = time.perf_counter()
    try:
        die_with_parent(parent)
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        output = os.open(directory / OUTPUT, os.O_WRONLY | os.O_CREAT)
        for standard in (1, 2):
            os.dup2(output, standard)
        faulthandler.enable()
        # The parent deletes this directory, and with it the tests' temporary directories and the files of failed cases.
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(directory)
        os.environ[hint.OFF] = "1"  # nobody reads the messages
        os.chdir(directory)
        write = Writer(directory)
        try:
            work(write)
            write("ended", time.perf_counter() - started)
            status = 0
        except BaseException as error:
            write("error", f"{type(error).__name__}: {error}")
            traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def run(items: list[pytest.Item], write: Writer) -> None:
    """Run collected tests as pytest does, and write down the cases that each judged."""
    from harness.processes import ranks
    from harness.runs import cache
    from harness.session.plugin import judged

    ranks.prepare(pristine=True)
    cache.listeners.append(write.trained)
    for item, following in zip(items, [*items[1:], None], strict=True):
        cases = judged(item.config)
        before = len(cases)
        write("running", item.nodeid)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        for case in cases[before:]:
            write("case", asdict(case) | {"specs": []})
