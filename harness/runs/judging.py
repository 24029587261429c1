"""Judge one run: train a spec, apply every law that applies to any run, and say how strong the verdict is.

1. The spec is trained. If it ends before its first step begins, nothing is judged: `Refused`. So it is if upstream refuses
   it within that step, in words (`is_refused`), or would train it for ever.
2. If it ends with an error later, that is upstream's: LOOP-04 fails, which says that a run makes all of its steps.
3. Otherwise each law is applied (`harness.laws.universal.laws_of`). A law that does not apply, or does not model something
   that the spec sets, is not judged, with the reason. A law that raises an error has judged nothing: that is a fault of the
   harness. What upstream raises while a law merges or loads an adapter fails the law.
4. A failure that a known defect explains (its `spec` describes the run) is a known defect.
"""

from __future__ import annotations

import functools
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness import defaults
from harness.contract.expectations import Expectation
from harness.errors import OutOfSpace, UsageError
from harness.files import require_space
from harness.laws import universal
from harness.laws.completion import REFUSALS, incomplete, refused_late
from harness.laws.plan import never_ends
from harness.laws.universal import COMPARISONS, Applied
from harness.processes.group import FORKS
from harness.runs.cache import Runs
from harness.spec import RunSpec
from harness.subjects import Subject
from harness.subjects.hf_trainer import HFTrainer
from harness.trace import Trace
from harness.verdict import AMBIGUOUS, FAIL, KNOWN_DEFECT, NOT_COMPARABLE, PASS, Unjudged, Verdict

#: The clause that a run breaks if it ends with an error after its first step has begun.
COMPLETES = "LOOP-04"

#: How the error of a run of one rank or of several begins if upstream refuses it in words.
_IN_WORDS = re.compile(rf"(rank \d+ of \d+: )?({'|'.join(REFUSALS)})\b")

#: How the error of a run begins if one of its processes, or the memory, and not upstream, was at fault
#: (`harness.processes.ranks`).
_DIED = re.compile(
    rf"rank \d+ of \d+ (was killed|ended with)|the \d+ ranks had not ended|{FORKS}"
    r"|(rank \d+ of \d+: )?(OutOfMemoryError|MemoryError|RuntimeError: .*can't allocate memory)\b"
)

#: Functions of upstream that laws call. What is raised inside of them is upstream's, not the law's.
_UPSTREAM = ("transformers", "peft", "accelerate", "bitsandbytes")
_CALLS = (
    "merge",
    "unmerge",
    "from_pretrained",
    "load_adapter",
    "disable_adapter",
    "disable_adapters",
    "enable_adapters",
)


#: How a refusal says that a process was at fault, and not upstream's own refusal.
NOT_TRAINED = ": could not be trained: "


class Refused(UsageError):
    """A spec cannot be trained: upstream refuses it, or a process ended. The message is one sentence.

    - output: what the ranks printed, "" if nothing.
    - known: why, if a process ended by a known fault of upstream; else "".
    """

    def __init__(self, message: str, output: str = "", known: str = ""):
        super().__init__(message)
        self.output = output
        self.known = known


@dataclass
class Judgement:
    """What was found about one run.

    - spec: what was trained, without the fields at upstream's default.
    - subject: who trained it.
    - trace: the run.
    - laws: clause -> verdict, in the order in which they were judged.
    - known: clause -> why it fails, for the known defects among them.
    """

    spec: RunSpec
    subject: str
    trace: Trace
    laws: dict[str, Verdict] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)

    def having(self, *outcomes: str) -> dict[str, Verdict]:
        """Return the laws with one of these outcomes."""
        return {clause: verdict for clause, verdict in self.laws.items() if verdict.outcome in outcomes}

    @property
    def undecided(self) -> dict[str, Verdict]:
        """Laws that apply to the run, but have judged nothing: undecided, nothing finite, or the law itself failed."""
        return {
            clause: verdict
            for clause, verdict in self.laws.items()
            if verdict.outcome == AMBIGUOUS
            or (verdict.outcome == NOT_COMPARABLE and any(isinstance(sentence, Unjudged) for sentence in verdict.seen))
        }

    @property
    def compared(self) -> list[str]:
        """The clauses of `COMPARISONS` that were applied."""
        return compared(self.laws)

    @property
    def code(self) -> int:
        """The exit code: 1 if a law fails; 3 if one is undecided, or if no run could be compared with another; else 0."""
        if self.having(FAIL):
            return 1
        return 3 if self.undecided or not self.compared else 0

    @property
    def strength(self) -> str:
        """How strong the verdict is, in one sentence."""
        return strength(self.laws, self.spec.launch.several)


def compared(laws: Mapping[str, Verdict]) -> list[str]:
    """Return the clauses of `COMPARISONS` that were applied. laws: clause -> verdict."""
    return [clause for clause in COMPARISONS if clause in laws and laws[clause].outcome in (PASS, FAIL, KNOWN_DEFECT)]


def strength(laws: Mapping[str, Verdict], several: bool) -> str:
    """Return how strong these verdicts on a run are, in one sentence. several: whether it has several ranks."""
    oracle = laws.get("GEN-01")
    others = [clause for clause in compared(laws) if clause != "GEN-01"]
    with_itself = f"compared with itself only ({', '.join(others)})" if others else "compared with no other run"
    if oracle is not None and oracle.outcome == PASS:
        how = "within the rounding of several ranks" if several else "bit for bit"
        return f"equal to the independent reference {how}"
    if oracle is not None and oracle.outcome in (FAIL, KNOWN_DEFECT):
        return "not equal to the independent reference"
    reason = "; ".join(oracle.seen) if oracle is not None else "it was not applied"
    return f"the reference does not model it ({reason}): {with_itself}"


def judge(
    spec: RunSpec,
    runs: Runs,
    expected: Iterable[Expectation] = (),
    where: str = "spec",
    began: Callable[[Trace], None] | None = None,
    judged: Callable[[str, Verdict], None] | None = None,
    always: str | None = None,
) -> Judgement:
    """Train a spec, and judge it by every law that applies to any run.

    - spec: fields at upstream's default are left out of it first (`harness.defaults`).
    - runs: who trains, and where.
    - expected: known defects. One that has a `spec` explains the failures of the runs which that spec describes.
    - where: what messages call the spec.
    - began: called with the trace once the run is trained.
    - judged: called with each clause and its verdict, as they come.
    - always: a clause; the run is then judged even if it was refused (the file of a case that failed).

    Raises Refused if the spec cannot be trained.
    """
    spec = runs.on_device(defaults.plain(spec))
    try:
        trace = trained(spec, runs, where, always is not None)
    except Refused as error:
        if (reason := _known_end(str(error), spec, runs.subject.name, expected)) is None:
            raise
        raise Refused(f"{error}: a known fault of upstream: {reason}", error.output, reason) from None
    if began is not None:
        began(trace)
    judgement = Judgement(spec, runs.subject.name, trace)
    for clause, applied in laws_of(spec, trace, runs, always):
        verdict = decided(applied)
        known = explained(clause, verdict, spec, runs.subject.name, expected)
        if known is not None:
            verdict = Verdict(KNOWN_DEFECT, verdict.expected, verdict.seen, verdict.measured)
            judgement.known[clause] = known.reason + (f" {known.link}" if known.link else "")
        judgement.laws[clause] = verdict
        if judged is not None:
            judged(clause, verdict)
    return judgement


def explained(
    clause: str, verdict: Verdict, spec: RunSpec, subject: str, expected: Iterable[Expectation]
) -> Expectation | None:
    """Return the known defect that explains a failure, None if there is none."""
    if verdict.outcome != FAIL:
        return None
    seen = "\n".join(verdict.seen)
    body = spec.to_json()
    return next((one for one in expected if one.excuses(clause, subject, body, seen)), None)


def _known_end(words: str, spec: RunSpec, subject: str, expected: Iterable[Expectation]) -> str | None:
    """Return the reason of the known defect by which the processes of a run hang or die; None if there is none."""
    if NOT_TRAINED not in words:
        return None
    known = explained(COMPLETES, Verdict(FAIL, "every process comes to its end", (words,)), spec, subject, expected)
    return None if known is None else known.reason


def trained(spec: RunSpec, runs: Runs, where: str, always: bool = False) -> Trace:
    """Return the run's trace. Raises Refused if the spec cannot be trained, or would be trained for ever.

    - always: return it even if upstream refused it.
    """
    if (endless := never_ends(spec)) is not None:
        raise Refused(f"{where}: upstream would train for ever: {endless}")
    who = "upstream" if isinstance(runs.subject, HFTrainer) else f"subject {runs.subject.name}"
    try:
        trace = runs.train(spec)
    except (Exception, SystemExit) as error:
        if isinstance(error, UsageError):
            raise
        require_space(error)
        raise Refused(f"{where}: {who} cannot train it ({cause(error)})") from None
    if trace.error is not None:
        first, *rest = trace.error.splitlines() or ["an error without words"]
        if _DIED.match(first):
            raise Refused(f"{where}{NOT_TRAINED}{first}", "\n".join(rest))
        if is_refused(trace) and not always:
            raise Refused(f"{where}: {who} refuses it: {first}")
    return trace


def is_refused(trace: Trace) -> bool:
    """Return whether a run ended by a refusal, and not by a fault of upstream's.

    It is refused if it ended with an error before its first step began. Within that step, only a ValueError or a
    NotImplementedError is a refusal: upstream says in words what it does not support. Some sentences are refusals
    at any step (`refused_late`). A subject of the user's may record steps and no events.
    """
    if trace.error is None:
        return False
    if "step_begin" not in trace.events:
        return not trace.steps
    return refused_late(trace) or ("step_end" not in trace.events and _IN_WORDS.match(trace.error) is not None)


def laws_of(spec: RunSpec, trace: Trace, runs: Runs, always: str | None = None) -> Iterator[tuple[str, Applied]]:
    """Yield each clause, with its law applied to a run that was trained, or why it does not apply (`universal.laws_of`).

    - spec: without the fields at upstream's default, on its device.
    - always: a clause of which the law is applied even if the run was refused.
    """

    def train(other: RunSpec, subject: Subject | None = None, again: bool = False) -> Trace:
        if (endless := never_ends(other)) is not None:
            raise Refused(f"upstream would train a run to compare with for ever: {endless}")
        made = runs.train(other, subject, again)
        # A run that does not load its own checkpoint is at fault, unless upstream says that it cannot be resumed.
        faulty = other.resume is not None and not (made.error or "").startswith(REFUSALS)
        if is_refused(made) and runs.on_device(other) != spec and not faulty:
            first = next(iter((made.error or "").splitlines()), "an error without words")
            raise Refused(f"a run to compare with is refused: {first}")
        return made

    for clause, applied in universal.laws_of(train, spec):
        if trace.error is not None and clause == COMPLETES != always:
            yield clause, functools.partial(failed, trace)
        elif trace.error is not None and clause != always:
            yield clause, f"the run ended with {next(iter(trace.error.splitlines()), 'an error')}"
        else:
            yield clause, applied


def failed(trace: Trace) -> Verdict:
    """Return the failure of a run that ended with an error. It needs no plan of the steps, so any spec is judged."""
    return Verdict(FAIL, "the run trains to its end", tuple(incomplete(trace)))


def decided(applied: Applied) -> Verdict:
    """Return what a law decides. If it raises an error, it has judged nothing, or upstream fails.

    Raises OutOfSpace if a full disk is the cause.
    """
    if isinstance(applied, str):
        return not_judged(applied)
    try:
        return applied()
    except Refused as error:
        return not_judged(str(error))
    except OutOfSpace:
        raise
    except UsageError as error:
        return not_judged(f"a run to compare with cannot be trained: {error}")
    except Exception as error:
        require_space(error)
        if (called := _of_upstream(error)) is not None:
            return Verdict(FAIL, f"{called} does its work", (f"{called} raised {cause(error)}",))
        return broken(error)


def broken(error: Exception) -> Verdict:
    """Return the verdict of a law that raised an error."""
    return not_judged(
        Unjudged(f"the law failed with {cause(error)}; this is a fault of peft-harness: please report it")
    )


def not_judged(reason: str) -> Verdict:
    """Return the verdict of a law that judged nothing."""
    return Verdict(NOT_COMPARABLE, "the law applies to the run", (reason,))


def cause(error: BaseException) -> str:
    """Return an exception in one line, with the place that raised it."""
    words = next(iter(str(error).strip().splitlines()), "")
    frames = traceback.extract_tb(error.__traceback__)
    place = f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{f': {words}' if words else ''}{place}"


def _of_upstream(error: Exception) -> str | None:
    """Return which function of `_CALLS` raised an error in upstream's code, None if none did."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package in _UPSTREAM and frame.f_code.co_name in _CALLS:
            return f"{package}'s {frame.f_code.co_name}()"
    return None


def to_json(judgement: Judgement, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return a judgement as `judge --json` writes it (session/judge_schema.json).

    - environment: as in the report of the suites.
    """
    return {
        "schema_version": 1,
        "environment": environment,
        "spec": judgement.spec.to_json(),
        "subject": judgement.subject,
        "strength": judgement.strength,
        "laws": [
            {
                "clause": clause,
                "verdict": verdict.outcome,
                "seen": list(verdict.seen),
                "reason": judgement.known.get(clause)
                or ("; ".join(verdict.seen) if verdict.outcome == NOT_COMPARABLE else ""),
            }
            for clause, verdict in judgement.laws.items()
        ],
    }
