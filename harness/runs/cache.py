"""The cache of traces: `Runs.train` trains each spec once per session, and every clause judges the same trace."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import compat, patches, subjects
from harness.processes import launch
from harness.runs import allowed
from harness.runs.damage import apply, check
from harness.spec import RunSpec
from harness.subjects import Subject
from harness.trace import Trace

#: Functions that are called as listener(subject name, trace) after each training run of this process, but not when a
#: cached trace is returned. A mutant's child process uses one to write its traces down (harness/mutants/child.py).
listeners: list[Callable[[str, Trace], None]] = []


class Runs:
    """The training runs of one subject, cached by spec.

    Checkpoints stay on disk below `root` until the caller removes it.

    - made: how many training runs were made, first legs included.
    - seconds: how long they took together.
    - broken: the runs that ended with an error and that were asked for since somebody emptied the list. The first leg of
      a run that resumes counts as asked for.
    - completed: how many runs that ended without an error were asked for since somebody set it to 0.
    - built: how many Trainers of the subject a test has built by itself, since somebody set it to 0.
    - clause: the clause that is judged; "" if a test judges several. What the subject adds on purpose is left out of the
      traces (`harness.runs.allowed`).
    - measured: results other than traces that a suite wants to compute once per spec, under keys of the suite's own.
    """

    def __init__(self, subject: Subject, root: Path, device: str = "cpu"):
        self.subject = subject
        self.root = root
        self.device = device
        self.made = 0
        self.seconds = 0.0
        self.measured: dict[Any, Any] = {}
        self.broken: list[Trace] = []
        self.completed = 0
        self.built = 0
        self.clause = ""
        self.allow: list[allowed.Allowed] = [subjects.traits(subject).allow]
        self._traces: dict[tuple[str, str], Trace] = {}
        #: Of each run that resumes: the run that it goes on from.
        self._first: dict[tuple[str, str], Trace] = {}
        self._directories = itertools.count(1)

    def train(self, spec: RunSpec, subject: Subject | None = None, again: bool = False) -> Trace:
        """Return the trace of a spec. This is the one `train` of a session: every run of the suites passes here.

        1. The spec is moved to the device that is judged (`on_device`).
        2. If a trace is cached under (subject's name, the spec's hash), it is returned.
        3. Otherwise the run gets a new directory below `root`.
        4. If the spec resumes, its first leg is trained to the end by this same method, so it is cached, too. Its
           checkpoints are copied into the new directory, and `spec.resume.damage` is done to the copies.
        5. The run is trained (`harness.processes.launch.train`), the listeners are called, the trace is cached.

        - spec: what to train.
        - subject: who trains it; None for the session's subject. A spec's `resume.writer` trains the first leg.
        - again: train although a trace is cached. The cached trace stays, so that the two can be compared.

        A run that ends in an error still has a trace, whose `error` says so. Raises UsageError for damage that is not
        known.
        """
        subject = subject or self.subject
        spec = self.on_device(spec)
        key = (subject.name, spec.hash)
        if key in self._traces and not again:
            self._note(self._first.get(key))
            self._note(self._traces[key])
            return self._shown(subject, self._traces[key])
        directory = self.directory(f"{subject.name}-{spec.hash}".replace(":", "-"))
        if spec.resume is not None:
            self._first[key] = self._copy_checkpoints(spec, subject, directory)
        started = time.perf_counter()
        try:
            trace = launch.train(subject, spec, directory)
        finally:
            # The run's mixed precision must not reach what this process computes next, such as the reference's run.
            compat.forget_precision()
        self.seconds += time.perf_counter() - started
        self.made += 1
        self._note(trace)
        for listener in listeners:
            listener(subject.name, trace)
        if not again:
            self._traces[key] = trace
        # accelerate calls gc.collect() at the start of each run. Frozen objects are not searched: without this, every
        # run would search all cached traces.
        patches.freeze()
        return self._shown(subject, trace)

    def _shown(self, subject: Subject, trace: Trace) -> Trace:
        return allowed.without(trace, allowed.names(self.allow, self.clause)) if subject is self.subject else trace

    def directory(self, name: str) -> Path:
        """Create a new directory below `root`, and return it. A running number before `name` makes it unique."""
        path = self.root / f"{next(self._directories):04d}-{name}"
        path.mkdir(parents=True)
        return path

    def on_device(self, spec: RunSpec) -> RunSpec:
        """Return the spec on the device that is judged."""
        return spec.on_device(self.device)

    def _note(self, trace: Trace | None) -> None:
        if trace is not None and trace.error is not None:
            self.broken.append(trace)
        elif trace is not None:
            self.completed += 1

    def _copy_checkpoints(self, spec: RunSpec, subject: Subject, directory: Path) -> Trace:
        """Train the first leg, copy the checkpoints that the spec may resume from into `directory`, and damage them.

        If `resume.checkpoint` is a step, its checkpoint is copied; if it is True or False, all of them are. The first leg's
        trace is returned.
        """
        assert spec.resume is not None
        for damage in spec.resume.damage:
            check(damage)  # before minutes are spent on the first leg
        writer = subjects.load(spec.resume.writer) if spec.resume.writer else subject
        first = self.train(spec.first_leg(), writer)
        resume_from = spec.resume.checkpoint
        chosen = (one for one in first.checkpoints if isinstance(resume_from, bool) or one.step == resume_from)
        # Releases before 4.50 may write the last checkpoint twice (CKPT-12).
        for path in dict.fromkeys(Path(checkpoint.path) for checkpoint in chosen):
            # Both keep modification times: resume_from_checkpoint=True and rotation sort by them.
            if path.is_dir():
                shutil.copytree(path, directory / path.name)
            elif path.is_file():  # a loop of somebody's may write one file
                shutil.copy2(path, directory / path.name)
        for damage in spec.resume.damage:
            apply(damage, directory)
        return first
