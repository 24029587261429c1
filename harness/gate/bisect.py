"""Find the release of the package that broke a clause, or a run of --spec.

The pipeline of `bisect`:

1. Judge the good and the bad stack, and choose the cases that hold on one and fail on the other (`probe.targets`).
2. Find the smallest set of packages that breaks the clause when moved from good to bad together (`_smallest`).
3. For each of them, search its releases for the first that breaks the clause, with the others at bad (`_first`).
"""

from __future__ import annotations

import dataclasses
import itertools
import json as json_
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.environment import STACK
from harness.errors import UsageError
from harness.files import write_whole
from harness.gate import locks
from harness.gate.environments import Environment
from harness.gate.index import between
from harness.gate.probe import BREAKS, HOLDS, PARALLEL, Prober, StackResult, targets
from harness.gate.requirements import CURRENT, names
from harness.runs.judging import COMPLETES

#: Package -> version.
Stack = dict[str, str]

#: ask(stacks) -> the verdict of each: HOLDS, BREAKS or UNTESTABLE.
Ask = Callable[[Sequence[Stack]], list[str]]

#: At most this many cases are judged on the releases between good and bad.
CASES = 6


@dataclass(frozen=True)
class Step:
    """Where a package broke the clause.

    - holds: the last release on which the clause holds.
    - breaks: the first later release on which it fails.
    - between: the releases between these two; none of them can be judged.
    """

    package: str
    holds: str
    breaks: str
    between: tuple[str, ...] = ()


@dataclass
class Answer:
    """Which releases broke a clause.

    - steps: one for each package that must change.
    - tried: (stack, verdict) in order.
    """

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
                    f"after {step.package} {step.holds}, which holds, and at the latest in {step.breaks} "
                    f"({left} cannot be judged)"
                )
            else:
                words.append(f"{step.package} {step.breaks} ({step.holds} holds)")
        first = "" if self.steps[0].between else "in "
        return f"{self.clause} broke {first}{' together with '.join(words)}"


def search(
    clause: str,
    good: Stack,
    bad: Stack,
    releases: Callable[[str, str, str], list[str]],
    ask: Ask,
    at_once: int = PARALLEL,
) -> Answer:
    """Return what broke a clause that holds on `good` and fails on `bad`.

    - releases(package, first, last): the releases between two, as `harness.gate.index.between` returns them.
    - ask(stacks): judges stacks.
    - at_once: how many it judges at a time. With k, each step leaves one part of k + 1.
    """
    answer = Answer(clause, [])

    def ask_and_record(stacks: Sequence[Stack]) -> list[str]:
        verdicts = ask(stacks)
        answer.tried += zip(stacks, verdicts, strict=True)
        return verdicts

    differ = [package for package in bad if good.get(package) != bad[package]]
    moved = _smallest(differ, good, bad, ask_and_record)
    for package in moved:
        others = good | {other: bad[other] for other in moved if other != package}
        answer.steps.append(
            _first(package, releases(package, good[package], bad[package]), others, ask_and_record, at_once)
        )
    return answer


def _smallest(differ: list[str], good: Stack, bad: Stack, ask: Ask) -> list[str]:
    """Return the smallest set of packages that breaks the clause when they are at bad and the rest is at good."""
    for size in range(1, len(differ)):
        sets = list(itertools.combinations(differ, size))
        verdicts = ask([good | {package: bad[package] for package in moved} for moved in sets])
        for moved, verdict in zip(sets, verdicts, strict=True):
            if verdict == BREAKS:
                return list(moved)
    return differ


def _first(package: str, versions: list[str], others: Stack, ask: Ask, at_once: int) -> Step:
    """Search for the first version that breaks the clause. The first in the list holds, the last breaks."""
    low, high = 0, len(versions) - 1
    verdict_at = {low: HOLDS, high: BREAKS}
    while True:
        inside = [index for index in range(low + 1, high) if index not in verdict_at]
        if not inside:
            return Step(package, versions[low], versions[high], tuple(versions[low + 1 : high]))
        # As many as are judged at once, evenly spread.
        count = min(at_once, len(inside))
        chosen = sorted({inside[len(inside) * (part + 1) // (count + 1)] for part in range(count)})
        verdicts = ask([others | {package: versions[index]} for index in chosen])
        verdict_at |= dict(zip(chosen, verdicts, strict=True))
        breaking = [index for index in chosen if verdict_at[index] == BREAKS]
        high = min([high, *breaking])
        low = max([low, *(index for index in chosen if verdict_at[index] == HOLDS and index < high)])


# ---- the command ----


def bisect(
    clause: str,
    good: Environment,
    bad: Environment,
    prober: Prober,
    report: Callable[[Stack, StackResult, str, list[str]], None],
) -> Answer:
    """Search the releases between two environments for what broke a clause.

    - clause: the clause, or the names of the runs.
    - report(stack, result, verdict, cases): called for each stack that was judged, with the names of the compared cases.

    Raises UsageError if no case holds on `good` and fails on `bad`.
    """
    elsewhere = [
        {entry.name: entry for entry in locks.entries(environment.lock) if entry.url} for environment in (good, bad)
    ]
    for name in sorted({**elsewhere[0], **elsewhere[1]}):
        one, other = (found[name].identity if name in found else None for found in elsewhere)
        if one != other:
            raise UsageError(f"bisect: {name} is no release, so there are none to search between; name releases of it")
    same = [f"{name} @ {entry.url}" for name, entry in elsewhere[0].items()]
    packages = [
        name
        for name in dict.fromkeys([*STACK, *_named(good), *_named(bad)])
        if name in good.pins and name in bad.pins and name not in elsewhere[0]
    ]
    ends = [{name: environment.pins[name] for name in packages} for environment in (good, bad)]
    results = prober.ask([_requirements(stack, same) for stack in ends])
    cases = targets(*results)
    for stack, result in zip(ends, results, strict=True):
        report(stack, result, result.verdict(cases or result.cases), cases or list(result.cases))
    if not cases:
        reasons = [
            f"{name}: {result.summary(result.cases) or 'holds'}"
            for name, result in zip(("good", "bad"), results, strict=True)
        ]
        raise UsageError(
            f"{clause}: no case holds under --good and fails under --bad, so there is nothing to find ({'; '.join(reasons)})"
        )
    if any(results[1].cases[name].refused for name in cases):
        # The question is then which release trains the run no more, and one clause says that.
        cases = [name for name in cases if results[1].cases[name].clause == COMPLETES] or cases[:1]
    del cases[CASES:]
    if prober.judged.specs:
        broken = list(dict.fromkeys(results[1].cases[name].clause for name in cases))
        clause = f"{clause} ({'the first of ' * (len(broken) > 1)}{', '.join(broken)})"
    narrow = dataclasses.replace(prober, tests=tuple(results[1].cases[name].nodeid for name in cases))

    def ask(stacks: Sequence[Stack]) -> list[str]:
        results = narrow.ask([_requirements(stack, same) for stack in stacks])
        verdicts = [result.verdict(cases) for result in results]
        for stack, result, verdict in zip(stacks, results, verdicts, strict=True):
            report(stack, result, verdict, cases)
        return verdicts

    return search(clause, ends[0], ends[1], between, ask, prober.width)


def _named(environment: Environment) -> list[str]:
    return [] if environment.asked == CURRENT else names(environment.asked)


def _requirements(stack: Stack, same: Sequence[str] = ()) -> str:
    """Return a stack as requirements, without the label of a build (+cpu), which the resolver chooses.

    - same: what both ends have from a file, a folder or a repository.
    """
    return " ".join([*(f"{name}=={version.partition('+')[0]}" for name, version in stack.items()), *same])


def write_json(path: Path, answer: Answer, good: Environment, bad: Environment) -> None:
    """Write the answer as JSON, with every stack that was judged."""
    body: dict[str, Any] = {
        "schema_version": 1,
        "clause": answer.clause,
        "answer": str(answer),
        "exact": answer.exact,
        "steps": [
            {"package": step.package, "holds": step.holds, "breaks": step.breaks, "between": list(step.between)}
            for step in answer.steps
        ],
        "tried": [{"stack": stack, "verdict": verdict} for stack, verdict in answer.tried],
        "good": good.asked,
        "bad": bad.asked,
    }
    write_whole(path, json_.dumps(body, indent=1) + "\n")
