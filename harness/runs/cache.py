"""Runs: trains each spec once, keeps its trace, and lets every clause judge that."""

from __future__ import annotations

import gc
import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import compat, subjects
from harness.processes import launch
from harness.runs.damage import apply
from harness.spec import RunSpec
from harness.subjects import Subject
from harness.trace import Trace

#: Called with the subject's name and each trace that this process has trained.
listeners: list[Callable[[str, Trace], None]] = []


class Runs:
    """Traces of one subject, by spec. Checkpoints stay on disk below `root` until the caller removes it.

    made, seconds: how many training runs were made, and how long they took altogether. kept: what suites measure of a
    spec otherwise than by its trace, and only once.
    """

    def __init__(self, subject: Subject, root: Path, device: str = "cpu"):
        self.subject = subject
        self.root = root
        self.device = device
        self.made = 0
        self.seconds = 0.0
        self.kept: dict[Any, Any] = {}
        self._traces: dict[tuple[str, str], Trace] = {}
        self._fresh = itertools.count(1)

    def train(self, spec: RunSpec, subject: Subject | None = None, again: bool = False) -> Trace:
        """The trace of a spec, trained now unless it was before. `again` trains anew, to compare with the first.

        A spec that resumes has its first leg trained to the end, and the checkpoint to resume from copied, damaged
        as the spec says, and handed over.
        """
        subject = subject or self.subject
        spec = self.on_device(spec)
        key = (subject.name, spec.hash)
        if key in self._traces and not again:
            return self._traces[key]
        directory = self.directory(f"{subject.name}-{spec.hash}".replace(":", "-"))
        if spec.resume is not None:
            self._hand_over(spec, subject, directory)
        started = time.perf_counter()
        try:
            trace = launch.train(subject, spec, directory)
        finally:
            # What is computed next is no part of this run: by the reference, say, or by hand.
            compat.forget_precision()
        self.seconds += time.perf_counter() - started
        self.made += 1
        for listener in listeners:
            listener(subject.name, trace)
        if not again:
            self._traces[key] = trace
        # accelerate collects garbage at the start of each run, and would look through all traces for it, each time.
        gc.collect()
        gc.freeze()
        return trace

    def directory(self, name: str) -> Path:
        """A directory of that name that nobody has used yet."""
        path = self.root / f"{next(self._fresh):04d}-{name}"
        path.mkdir(parents=True)
        return path

    def on_device(self, spec: RunSpec) -> RunSpec:
        """The spec on the device that is judged."""
        return spec.on_device(self.device)

    def _hand_over(self, spec: RunSpec, subject: Subject, directory: Path) -> None:
        assert spec.resume is not None
        writer = subjects.load(spec.resume.writer) if spec.resume.writer else subject
        first = self.train(spec.first_leg(), writer)
        for checkpoint in first.checkpoints:
            wanted = spec.resume.checkpoint
            if (isinstance(wanted, bool) or checkpoint.step == wanted) and Path(checkpoint.path).is_dir():
                # Copies keep their times: resume_from_checkpoint=True and rotation sort by them.
                shutil.copytree(checkpoint.path, directory / Path(checkpoint.path).name)
        for damage in spec.resume.damage:
            apply(damage, directory)
