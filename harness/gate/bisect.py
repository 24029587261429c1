"""Which release of which package broke a clause."""

from __future__ import annotations

import itertools
import json as json_
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.files import write_whole
from harness.gate.environments import CURRENT, STACK, Environment, named
from harness.gate.index import between
from harness.gate.probe import BREAKS, HOLDS, PARALLEL, Prober, Seen, targets

#: ask(stacks) -> what each did; a stack is package -> version.
Stack = dict[str, str]
#: So many of the cases that tell good from bad are asked of the releases between.
CASES = 6

Ask = Callable[[Sequence[Stack]], list[str]]


@dataclass(frozen=True)
class Step:
    """Where a package broke the clause: `holds` is the last release that holds, `breaks` the first one that does not.

    between: releases after `holds` and before `breaks`, none of which can be judged.
    """

    package: str
    holds: str
    breaks: str
    between: tuple[str, ...] = ()


@dataclass
class Answer:
    """steps: one for each package that must change. tried: (stack, verdict) in order."""

    clause: str
    steps: list[Step]
    tried: list[tuple[Stack, str]] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        return not any(step.between for step in self.steps)

    def __str__(self) -> str:
        words = []
        for step in self.steps:
            if step.between:
                left = ", ".join(step.between)
                words.append(
                    f"after {step.package} {step.holds}, which holds, and not after {step.breaks} ({left} cannot be judged)"
                )
            else:
                words.append(f"{step.package} {step.breaks} ({step.holds} holds)")
        first = "" if self.steps[0].between else "in "
        return f"{self.clause} broke {first}{' together with '.join(words)}"


def search(clause: str, good: Stack, bad: Stack, releases: Callable[[str, str, str], list[str]], ask: Ask) -> Answer:
    """Find what broke a clause that holds under `good` and breaks under `bad`.

    releases(package, one, other): as `harness.gate.index.between`. First the smallest set of packages that breaks it,
    moved from good to bad together; then, for each of them, the first release that does, the others being at bad.
    """
    answer = Answer(clause, [])

    def asked(stacks: Sequence[Stack]) -> list[str]:
        verdicts = ask(stacks)
        answer.tried += zip(stacks, verdicts, strict=True)
        return verdicts

    differ = [package for package in bad if good.get(package) != bad[package]]
    moved = _smallest(differ, good, bad, asked)
    for package in moved:
        others = good | {other: bad[other] for other in moved if other != package}
        answer.steps.append(_first(package, releases(package, good[package], bad[package]), others, asked))
    return answer


def _smallest(differ: list[str], good: Stack, bad: Stack, asked: Ask) -> list[str]:
    for size in range(1, len(differ)):
        sets = list(itertools.combinations(differ, size))
        verdicts = asked([good | {package: bad[package] for package in moved} for moved in sets])
        for moved, verdict in zip(sets, verdicts, strict=True):
            if verdict == BREAKS:
                return list(moved)
    return differ


def _first(package: str, versions: list[str], others: Stack, asked: Ask) -> Step:
    """The first of the versions that breaks; the first in the list holds, the last breaks."""
    low, high = 0, len(versions) - 1
    known = {low: HOLDS, high: BREAKS}
    while True:
        inside = [index for index in range(low + 1, high) if index not in known]
        if not inside:
            return Step(package, versions[low], versions[high], tuple(versions[low + 1 : high]))
        # As many as can be asked at once, evenly spread.
        count = min(PARALLEL, len(inside))
        chosen = sorted({inside[len(inside) * (part + 1) // (count + 1)] for part in range(count)})
        verdicts = asked([others | {package: versions[index]} for index in chosen])
        known |= dict(zip(chosen, verdicts, strict=True))
        breaking = [index for index in chosen if known[index] == BREAKS]
        high = min([high, *breaking])
        low = max([low, *(index for index in chosen if known[index] == HOLDS and index < high)])


# ---- the command ----


def bisect(
    clause: str,
    good: Environment,
    bad: Environment,
    prober: Prober,
    told: Callable[[Stack, Seen, str, list[str]], None],
) -> Answer:
    """See `search`, over the packages of two environments. told: called with what each stack did.

    UsageError where the clause does not hold under `good`, or does not break under `bad`.
    """
    names = [
        name for name in dict.fromkeys([*STACK, *_named(good), *_named(bad)]) if name in good.pins and name in bad.pins
    ]
    ends = [{name: environment.pins[name] for name in names} for environment in (good, bad)]
    seen = prober.ask([_requirements(stack) for stack in ends])
    wanted = targets(*seen)
    for stack, one in zip(ends, seen, strict=True):
        told(stack, one, one.verdict(wanted or one.cases), wanted or list(one.cases))
    if not wanted:
        why = [f"{name}: {one.told(one.cases) or 'holds'}" for name, one in zip(("good", "bad"), seen, strict=True)]
        raise UsageError(
            f"{clause}: no case holds under --good and fails under --bad, so there is nothing to find ({'; '.join(why)})"
        )
    del wanted[CASES:]
    narrow = Prober(clause, prober.judged, tuple(seen[1].cases[name].nodeid for name in wanted))

    def ask(stacks: Sequence[Stack]) -> list[str]:
        found = narrow.ask([_requirements(stack) for stack in stacks])
        verdicts = [one.verdict(wanted) for one in found]
        for stack, one, verdict in zip(stacks, found, verdicts, strict=True):
            told(stack, one, verdict, wanted)
        return verdicts

    return search(clause, ends[0], ends[1], between, ask)


def _named(environment: Environment) -> list[str]:
    return [] if environment.asked == CURRENT else named(environment.asked)


def _requirements(stack: Stack) -> str:
    """The stack as requirements. A build's label (+cpu) is the resolver's to choose."""
    return " ".join(f"{name}=={version.partition('+')[0]}" for name, version in stack.items())


def write_json(path: Path, answer: Answer, good: Environment, bad: Environment) -> None:
    """Write the answer, and all that was tried for it."""
    body: dict[str, Any] = {
        "schema_version": 1,
        "clause": answer.clause,
        "answer": str(answer),
        "exact": answer.exact,
        "steps": [
            {"package": one.package, "holds": one.holds, "breaks": one.breaks, "between": list(one.between)}
            for one in answer.steps
        ],
        "tried": [{"stack": stack, "verdict": verdict} for stack, verdict in answer.tried],
        "good": good.asked,
        "bad": bad.asked,
    }
    write_whole(path, json_.dumps(body, indent=1) + "\n")
