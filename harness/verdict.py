"""Verdict: what a law decides about traces, with the evidence; and the case that it belongs to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

PASS = "pass"
FAIL = "fail"
AMBIGUOUS = "ambiguous"
NOT_COMPARABLE = "not_comparable"
SKIPPED = "skipped"
KNOWN_DEFECT = "known_defect"
UNEXPECTED_PASS = "unexpected_pass"

#: Every verdict, worst first. A clause has the worst verdict of its cases.
ORDER = (FAIL, UNEXPECTED_PASS, AMBIGUOUS, NOT_COMPARABLE, KNOWN_DEFECT, PASS, SKIPPED)


@dataclass(frozen=True)
class Verdict:
    """What a law decides.

    - outcome: PASS, FAIL, AMBIGUOUS or NOT_COMPARABLE.
    - expected: what must hold, in one sentence.
    - seen: what was found instead and where (step, tensor, file), one sentence each. For NOT_COMPARABLE: the reasons.
    - measured: numbers for the report, whatever the outcome.
    """

    outcome: str
    expected: str
    seen: tuple[str, ...] = ()
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        return self.outcome == PASS


class Unjudged(str):
    """A finding that is no evidence: it says why something could not be compared, such as numbers that are all NaN."""


class Refused(str):
    """The reason of a NOT_COMPARABLE verdict, if it is that upstream refuses in words what was to be judged."""


class Otherwise(str):
    """The reason of a NOT_COMPARABLE verdict, if the subject does on purpose otherwise what was to be compared."""


def verdict(expected: str, findings: Iterable[str], **measured: Any) -> Verdict:
    """Return PASS if there are no findings, otherwise FAIL with the findings. `Unjudged` alone makes it NOT_COMPARABLE."""
    seen = tuple(findings)
    evidence = any(not isinstance(sentence, Unjudged) for sentence in seen)
    return Verdict(FAIL if evidence else NOT_COMPARABLE if seen else PASS, expected, seen, measured)


def not_finite(what: str, *values: float | None) -> list[str]:
    """Return an `Unjudged` finding if no value is a finite number, so that a comparison of them would show nothing.

    - what: what the values are, such as "step 3: the logged loss".
    - values: those of each side. None is a value that is missing, which is not the same as one that is not finite.
    """
    if not values or any(value is None or math.isfinite(value) for value in values):
        return []
    return [Unjudged(f"{what} is {values[0]}, so there was nothing finite to compare")]


def spelled(value: Any) -> Any:
    """Return a value of lists and dicts with NaN and infinity as text, so that equal ones are equal, and JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): spelled(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [spelled(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def same(what: str, seen: Any, expected: Any, **measured: Any) -> Verdict:
    """Return PASS if `seen` equals `expected`, otherwise FAIL with the difference.

    - what: names the values in the verdict, such as "files of checkpoint-3".
    - measured: numbers for the report.
    """
    findings = [] if seen == expected else _difference(seen, expected)
    return verdict(f"{what}: {_short(expected)}", findings, **measured)


def raises(what: str, kind: type[BaseException], words: str, call: Callable[[], Any]) -> Verdict:
    """Return PASS if `call` raises an exception of `kind` whose message contains `words`. what: names the call."""
    expected = f"{what} raises {kind.__name__} saying {words!r}"
    try:
        result = call()
    except Exception as error:
        right = isinstance(error, kind) and words in str(error)
        return verdict(expected, [] if right else [f"raised {type(error).__name__}: {_short(str(error))}"])
    return verdict(expected, [f"raised nothing and returned {_short(result)}"])


def both(*verdicts: Verdict) -> Verdict:
    """Combine verdicts that must all hold: the worst outcome, what is expected of the failing ones, and all findings."""
    worst = min(verdicts, key=lambda one: ORDER.index(one.outcome)).outcome
    failing = [one for one in verdicts if not one.holds] or list(verdicts)
    return Verdict(
        worst,
        "; ".join(dict.fromkeys(one.expected for one in failing)),
        tuple(sentence for one in verdicts for sentence in one.seen),
        {name: value for one in verdicts for name, value in one.measured.items()},
    )


def _difference(seen: Any, expected: Any) -> list[str]:
    if isinstance(seen, (set, frozenset)) and isinstance(expected, (set, frozenset)):
        found = [f"missing: {_short(sorted(map(str, expected - seen)))}"] if expected - seen else []
        return found + ([f"besides: {_short(sorted(map(str, seen - expected)))}"] if seen - expected else [])
    if isinstance(seen, dict) and isinstance(expected, dict):
        keys = sorted(set(seen) | set(expected), key=str)
        return [
            f"{key}: {_short(seen.get(key, 'absent'))}, expected {_short(expected.get(key, 'absent'))}"
            for key in keys
            if key not in seen or key not in expected or seen[key] != expected[key]
        ]
    if isinstance(seen, list) and isinstance(expected, list) and len(seen) == len(expected):
        at = next((i for i, (a, b) in enumerate(zip(seen, expected, strict=True)) if a != b), 0)
        return [f"differs first at index {at}: {_short(seen[at])}, expected {_short(expected[at])}"]
    return [f"{_short(seen)}"]


def _short(value: Any, limit: int = 300) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


@dataclass
class Case:
    """One clause judged on one scenario.

    - evidence: what was measured, and if the clause fails, what was seen.
    - specs: the specs that were trained for it, as JSON.
    - reason, link: of a skip or of a known defect.
    - drawn: how many drawn runs the case judged; None for a case whose run was not drawn.
    - life: the actions of a drawn life (`harness.runs.lifecycle`).
    - unsupported: whether it was skipped because the subject cannot run it on this machine and stack.
    - misused: whether it was not judged because the user's subject is wrong.
    - brought: whether its run is one that the user brought (--spec).
    - refused: whether it was not judged because that run cannot be trained.
    - outside: whether it was not judged because its run is outside of the user's scope.
    - own: whether a known defect of the user's own (--known-defects) decided the verdict.
    - raised: the errors that ended its runs or its test, each with the place in upstream that raised it (`harness.raised`).
      "run" is which of `specs` was trained.
    - whose: whose failure it is, if somebody's own class or loop is judged: "yours", "upstream's", or "convention" (it does
      another thing than transformers.Trainer, which may be on purpose).
    - repeat: the command that repeats it, if it fails.
    """

    clause: str
    scenario: str
    nodeid: str
    subject: str
    device: str = "cpu"
    verdict: str = PASS
    evidence: dict[str, Any] = field(default_factory=dict)
    specs: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""
    link: str = ""
    seconds: float = 0.0
    drawn: int | None = None
    life: list[dict[str, Any]] | None = None
    unsupported: bool = False
    misused: bool = False
    brought: bool = False
    refused: bool = False
    outside: bool = False
    own: bool = False
    raised: list[dict[str, Any]] = field(default_factory=list)
    repeat: str = ""
    whose: str = ""
