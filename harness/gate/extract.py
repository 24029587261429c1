"""What a gate's report answers, for every way to show it: the first sentence, causes, what else changed, commands.

It is read from the report as JSON has it, which may have been changed by the code that it judges: only a few fields are read,
and only as the kinds that the schema says. It imports nothing that has to be installed.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import UsageError
from harness.gate.findings import ABOUT, BROKEN, FIXED, INCONCLUSIVE, LOST, NOTE, SAFE, UNSAFE
from harness.reading import shown
from harness.words import counted

TITLES = {
    BROKEN: "Broken by the upgrade",
    LOST: "Cannot be judged any more",
    FIXED: "Fixed by the upgrade",
    NOTE: "Worth knowing",
}

#: What the other findings of a cause are called.
_BESIDES = {
    "cell": ("run is no longer trained as before", "runs are no longer trained as before"),
    "numbers": ("run has other numbers", "runs have other numbers"),
    "resume": ("checkpoint is not resumed by the other stack", "checkpoints are not resumed by the other stack"),
    "inference": ("adapter is not loaded by the other stack", "adapters are not loaded by the other stack"),
    "throughput": ("measurement of a step is worse", "measurements of a step are worse"),
}

#: Options of a command that is shown from a report. None of them names code, or a place to install from.
_OPTIONS = {"--clause", "--good", "--bad", "--with", "--spec", "--device"}


@dataclass(frozen=True)
class Listed:
    """One cause, as it is shown.

    - sentence: why.
    - counts: how many cases and clauses it has, and what else.
    - details: what it reaches, the packages, an example; without what is not known.
    - clauses: their ids.
    - next: commands, ready to paste.
    """

    sentence: str
    counts: str
    details: tuple[str, ...]
    clauses: tuple[str, ...]
    next: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What a report answers.

    - verdict: safe, unsafe or inconclusive.
    - sentence: why, in one sentence.
    - requires: what packages of the stacks want and do not have.
    - causes: BROKEN or LOST -> its causes, the largest first. None for a report of a release that named none.
    - findings: what a finding means -> (what it is about, where, its sentence).
    """

    verdict: str
    sentence: str
    requires: tuple[str, ...]
    causes: dict[str, list[Listed]] | None
    findings: dict[str, list[tuple[str, str, str]]]


def read(report: Mapping[str, Any], where: str = "the report", own: bool = False) -> Answer:
    """Return what a report answers.

    - where: what messages call it.
    - own: whether this process made it. Otherwise commands that name code, or a place to install from, are left out.

    Raises UsageError if a field that is shown has another type than the schema says.
    """
    verdict = one_of(report, "verdict", (SAFE, UNSAFE, INCONCLUSIVE), where)
    findings: dict[str, list[tuple[str, str, str]]] = {means: [] for means in TITLES}
    for finding in _objects(report, "findings", where):
        about = one_of(finding, "about", ABOUT, where)
        means = one_of(finding, "means", tuple(TITLES), where)
        place, sentence = (of_type(finding, field, str, where) for field in ("where", "sentence"))
        # What follows from a cause is not worth a line of its own.
        details = finding.get("details")
        if means != NOTE or not (isinstance(details, dict) and details.get("causes")):
            findings[means].append((about, place, sentence))
    requires = tuple(
        f"{' and '.join(_texts(one, 'sides', where))}: {of_type(one, 'sentence', str, where)}"
        for one in (_objects(report, "requires", where) if "requires" in report else ())
    )
    causes = None
    if "causes" in report:
        found = [(one_of(one, "means", (BROKEN, LOST), where), one) for one in _objects(report, "causes", where)]
        causes = {kind: [_listed(one, where, own) for means, one in found if means == kind] for kind in (BROKEN, LOST)}
        sentence = _sentence(verdict, found, where)
    else:
        sentence = _sentence_without_causes(verdict, findings)
    return Answer(verdict, sentence, requires, causes, findings)


def _sentence(verdict: str, causes: list[tuple[str, Mapping[str, Any]]], where: str) -> str:
    broken, lost = ([one for means, one in causes if means == kind] for kind in (BROKEN, LOST))
    if verdict == SAFE:
        return "what held on the baseline holds on the candidate"
    if verdict == INCONCLUSIVE:
        what = _counts(lost, where) or "something"
        return f"nothing is broken, and {what} cannot be judged any more, for {counted(len(lost), 'reason')}"
    cases = sum(of_type(one, "cases", int, where) for one in broken)
    besides = _besides(broken, where)
    clauses = len({id for one in broken for id in _texts(one, "clauses", where)})
    parts = [f"{counted(cases, 'case')} of {counted(clauses, 'clause')} held before and now fail"] if cases else []
    return "; ".join([counted(len(broken), "cause"), *parts, *besides])


def _sentence_without_causes(verdict: str, findings: Mapping[str, list[tuple[str, str, str]]]) -> str:
    if verdict == SAFE:
        return "what held on the baseline holds on the candidate"
    gravest = findings[BROKEN if verdict == UNSAFE else LOST]
    names = list(dict.fromkeys(where if about == "clause" else f"{about} of {where}" for about, where, _ in gravest))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _listed(one: Mapping[str, Any], where: str, own: bool) -> Listed:
    details = [of_type(one, "reaches", str, where)]
    if packages := _texts(one, "packages", where):
        details.append(f"to blame: {' or '.join(packages)}")
    if example := of_type(one, "example", str, where):
        details.append(f"for example {example}")
    commands = (text if own else _command(text) for text in _texts(one, "next", where))
    return Listed(
        of_type(one, "sentence", str, where),
        _counts([one], where),
        tuple(detail for detail in details if detail),
        tuple(_texts(one, "clauses", where)),
        tuple(text for text in commands if text),
    )


def _counts(causes: list[Mapping[str, Any]], where: str) -> str:
    cases = sum(of_type(one, "cases", int, where) for one in causes)
    clauses = {id for one in causes for id in _texts(one, "clauses", where)}
    parts = [f"{counted(cases, 'case')} of {counted(len(clauses), 'clause')}"] if cases else []
    parts += _besides(causes, where)
    if follows := sum(len(list(_objects(one, "follows", where))) for one in causes):
        parts.append(f"{counted(follows, 'more case')} cannot be judged for it")
    return "; ".join(parts)


def _besides(causes: list[Mapping[str, Any]], where: str) -> list[str]:
    abouts = Counter(
        one_of(thing, "about", ABOUT, where) for one in causes for thing in _objects(one, "elsewhere", where)
    )
    return [
        f"{number:,} {_BESIDES.get(about, ('finding', 'findings'))[number > 1]}" for about, number in abouts.items()
    ]


def _command(text: str) -> str:
    """Return a command of somebody else's report in a form that can be pasted; "" for one that is not shown.

    Words are quoted again, so that no shell sees more in them than words.
    """
    try:
        words = shlex.split(text)
    except ValueError:
        return ""
    if len(words) < 3 or words[0] != "peft-harness" or words[1] not in ("bisect", "check", "repro"):
        return ""
    options = {word for word in words[2:] if word.startswith("-")}
    plain = all(re.fullmatch(r"[\w.=<>!~+,/*\[\] -]+", word) for word in words)
    return shlex.join(words) if plain and options <= _OPTIONS else ""


# ---- fields ----


def one_of(report: Mapping[str, Any], field: str, allowed: tuple[str, ...], where: str) -> str:
    """Return a field that is one of a few words. Raises UsageError if it is none of them."""
    value = of_type(report, field, str, where)
    if value not in allowed:
        raise UsageError(f"{where}: {field} is {shown(value)}; it is one of {', '.join(allowed)}")
    return str(value)


def of_type(report: Mapping[str, Any], field: str, kind: type, where: str) -> Any:
    """Return a field of a kind. Raises UsageError if it is missing or of another kind."""
    value = report.get(field)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UsageError(f"{where}: {field} is no {kind.__name__}; it is not a report of `peft-harness gate`")
    return value


def _objects(report: Mapping[str, Any], field: str, where: str) -> Iterator[Mapping[str, Any]]:
    name = field.removesuffix("s")
    for one in of_type(report, field, list, where):
        if not isinstance(one, dict):
            raise UsageError(f"{where}: a {name} is no object; it is not a report of `peft-harness gate`")
        yield one


def _texts(report: Mapping[str, Any], field: str, where: str) -> list[str]:
    values: list[str] = of_type(report, field, list, where)
    if not all(isinstance(value, str) for value in values):
        raise UsageError(f"{where}: {field} has something that is no text; it is not a report of `peft-harness gate`")
    return values
