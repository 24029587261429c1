"""Subjects: who is judged. A subject trains a spec in a directory and returns the trace.

`hf-trainer` is transformers.Trainer with adapters injected by peft, `reference` is harness/reference, and any other
name is "module:factory", a callable without arguments that returns an object with this protocol.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from harness.errors import UsageError
from harness.spec import RunSpec
from harness.trace import Trace

NAMES = ("hf-trainer", "reference")


@runtime_checkable
class Subject(Protocol):
    """What the suites need of who is judged."""

    #: Shown in reports.
    name: str

    def unsupported(self, spec: RunSpec) -> str | None:
        """Why this subject does not train such a spec, None if it does. A reason makes a case skipped, not failed."""
        ...

    def train(self, spec: RunSpec, directory: Path) -> Trace:
        """Train `spec`, writing into `directory`. Checkpoints to resume from already lie there as checkpoint-<step>.

        What upstream raises is recorded in Trace.error and not raised.
        """
        ...


def load(name: str) -> Subject:
    """The subject of that name. Raises UsageError for an unknown one, and for a factory that makes none."""
    if name == "hf-trainer":
        from harness.subjects.hf_trainer import HFTrainer

        return HFTrainer()
    if name == "reference":
        from harness.subjects.reference import Reference

        return Reference()
    if ":" not in name:
        raise UsageError(f"unknown subject {name!r}; known are {', '.join(NAMES)}, or name your own as module:factory")
    from harness.fixtures.models import load_object

    subject = load_object(name)()
    if not isinstance(subject, Subject):
        raise UsageError(
            f"subject {name!r} returned {type(subject).__name__}, which lacks name, unsupported(spec) or "
            "train(spec, directory); see harness/subjects/__init__.py"
        )
    return subject
