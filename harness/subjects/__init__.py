"""Subjects: who is judged. A subject trains a spec in a directory and returns what was observed as a Trace.

- "hf-trainer": transformers.Trainer with adapters injected by peft
- "reference": harness/reference
- those of other libraries (`harness.subjects.shipped`): "trl-sft", "trl-dpo", "sentence-transformers",
  "accelerate", "torch"
- "module:factory": your own; the factory is called without arguments and returns an object with the protocol `Subject`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from harness.contract.clause import PROFILES, Clause
from harness.errors import UsageError
from harness.files import require_space
from harness.raised import where_raised
from harness.spec import RunSpec
from harness.subjects import shipped
from harness.subjects.given import MOST
from harness.trace import Trace, wrong_fields
from harness.user_code import cause, guarded, quoted

NAMES = ("hf-trainer", "reference", *shipped.NEEDS)


class WrongSubject(UsageError):
    """A subject of the user's does not do what the protocol says. A case that needs it is not judged."""


@runtime_checkable
class Subject(Protocol):
    """What the suites call. To judge a subclass of transformers.Trainer, use `harness.subjects.hf_trainer.HFTrainer`."""

    #: Shown in reports. Traces are cached by it, so two subjects in one session need two names.
    name: str

    # It may have some of the attributes of `Traits`, too: built_on, profile, not_for and allow.

    def unsupported(self, spec: RunSpec) -> str | None:
        """Return why this subject cannot train such a spec, None if it can. With a reason the case is skipped."""
        ...

    def train(self, spec: RunSpec, directory: Path) -> Trace:
        """Train `spec` in this process and return the trace.

        - directory: where to write. If the spec resumes, the checkpoints are there already, as checkpoint-<step>

        If upstream raises, put the error into Trace.error instead of raising it. Raise UsageError if the spec is wrong.

        In a run of several ranks (`spec.launch.several`) the suites call `harness.processes.launch.train`, which starts
        the ranks. Each rank calls this method with the same spec and directory, in an environment like torchrun's (RANK,
        WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), and returns the trace of what it saw. launch.train then puts
        the traces of the other ranks into that of rank 0. For this the subject is pickled.
        """
        ...


@dataclass(frozen=True)
class Traits:
    """What decides which clauses judge a subject, and whose fault it is if one fails.

    - foreign: whether it is somebody's own class or loop, and neither transformers.Trainer itself nor the reference.
    - own_class: the class of somebody's Trainer; None for anything else.
    - built_on: the packages whose known defects are not its own.
    - profile: the largest that it is judged by, if it is somebody's (`harness.contract.clause.PROFILES`).
    - not_for: globs over clause ids, or over "CLAUSE/scenario" -> why these say nothing of it.
    - allow: globs over clause ids -> globs over names that it adds on purpose: keys of logs and metrics, files,
      tensors that are not trained.
    """

    foreign: bool = False
    own_class: type | None = None
    built_on: tuple[str, ...] = ()
    profile: str = "trainer"
    not_for: Mapping[str, str] = field(default_factory=dict)
    allow: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def why_not(self, clause: Clause, scenario: str = "") -> str | None:
        """Return why a clause, or one of its scenarios, does not judge the subject; None if it does."""
        if self.foreign and clause.profile == "stack":
            return "about interfaces of transformers and peft themselves, and not about what is built on them"
        if self.foreign and PROFILES.index(clause.profile) > PROFILES.index(self.profile):
            return "a convention of transformers.Trainer, of which a loop needs to know nothing"
        called = (clause.id, f"{clause.id}/{scenario}") if scenario else (clause.id,)
        return next((why for glob, why in self.not_for.items() if any(fnmatchcase(one, glob) for one in called)), None)


#: What somebody's own subject is built on, if it does not say.
_USUAL = ("peft", "accelerate", "bitsandbytes", "torch")


def traits(subject: Subject) -> Traits:
    """Return the traits of a subject."""
    own = getattr(subject, "own_class", subject)  # a Trainer's is None if it is transformers' own
    if own is None or subject.name == "reference":
        return Traits()
    return Traits(
        foreign=True,
        own_class=own if isinstance(own, type) else None,
        built_on=tuple(getattr(subject, "built_on", _USUAL)),
        profile=getattr(subject, "profile", "trainer"),
        not_for=dict(getattr(subject, "not_for", {})),
        allow=dict(getattr(subject, "allow", {})),
    )


def load(name: str) -> Subject:
    """Return the subject of that name. Raises UsageError if the name is unknown, or the factory makes no subject."""
    if name == "hf-trainer":
        from harness.subjects.hf_trainer import HFTrainer

        return HFTrainer()
    if name == "reference":
        from harness.subjects.reference import Reference

        return Reference()
    if name in shipped.NEEDS:
        return shipped.load(name)
    if ":" not in name:
        raise WrongSubject(
            f"unknown subject {name!r}; known are {', '.join(NAMES)}, or name your own as module:factory"
        )
    from harness.fixtures.models import load_object

    factory = load_object(name)
    if not callable(factory):
        raise WrongSubject(
            f"subject {name!r} is a {type(factory).__name__}; name a function or class that makes a subject"
        )
    with guarded(f"subject {name!r} cannot be made"):
        subject = factory()
        return _checked(subject, name)


def _checked(subject: Any, name: str) -> Subject:
    if not isinstance(subject, Subject):
        raise WrongSubject(
            f"subject {name!r} returned {type(subject).__name__}, which lacks name, unsupported(spec) or "
            "train(spec, directory); see harness/subjects/__init__.py"
        )
    shown: Any = subject.name
    # Reports and directories of runs have it.
    if not (isinstance(shown, str) and 0 < len(shown) <= MOST and shown.isprintable() and not set("/\\") & set(shown)):
        raise WrongSubject(
            f"subject {name!r} has the name {quoted(shown)}; expected a printable text of 1 to {MOST} characters "
            "without slashes"
        )
    if isinstance(subject, type) or not (callable(subject.unsupported) and callable(subject.train)):
        raise WrongSubject(f"subject {name!r} returned {quoted(subject)}, whose unsupported or train cannot be called")
    return subject


def unsupported(subject: Subject, spec: RunSpec) -> str | None:
    """Return why a subject cannot train a spec, None if it can. Raises WrongSubject if the answer is neither."""
    try:
        reason: Any = subject.unsupported(spec)
    except UsageError:
        raise
    except Exception as error:
        raise WrongSubject(f"subject {subject.name!r}: unsupported(spec) raised an error ({cause(error)})") from None
    if reason is None or (isinstance(reason, str) and reason):
        return str(reason) if reason else None
    raise WrongSubject(
        f"subject {subject.name!r}: unsupported(spec) returned {quoted(reason)}; expected a reason, or None"
    )


def trained(subject: Subject, spec: RunSpec, directory: Path) -> Trace:
    """Have a subject train a spec in this process. What a subject of the user's raises is the error of its Trace.

    Raises WrongSubject if it returns something else than a Trace.
    """
    try:
        trace: Any = subject.train(spec, directory)
    except UsageError:
        raise
    except Exception as error:
        if type(subject).__module__.startswith("harness."):
            raise
        from harness.subjects.observer import Observer

        require_space(error)
        trace = Observer(spec, subject.name, (), directory).finish()
        trace.error, trace.raised = cause(error), where_raised(error)
    if not isinstance(trace, Trace):
        raise WrongSubject(
            f"subject {subject.name!r}: train(spec, directory) returned {quoted(trace)}; expected a harness.trace.Trace"
        )
    if wrong := wrong_fields(trace):
        raise WrongSubject(f"subject {subject.name!r}: train(spec, directory) returned a Trace whose {wrong}")
    return trace
