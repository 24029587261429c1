"""The commands to type after a gate, ready to paste: which release was it, judge it again, repeat one case."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness import contract, trust
from harness.gate.by_cause import GateCause
from harness.gate.findings import BROKEN
from harness.gate.requirements import CURRENT
from harness.gate.scope import Scope

#: Clauses in the command that judges a cause again.
_CLAUSES = 3


def with_next(
    causes: Iterable[GateCause],
    baseline: str,
    candidate: str,
    judged: Scope,
    files: Mapping[tuple[str, str], Path],
) -> list[GateCause]:
    """Return causes with their commands.

    - baseline, candidate: the requirements as the user gave them.
    - judged: of the candidate.
    - files: (clause, scenario), or ("cell", name), -> the file that repeats it.
    """
    return [
        dataclasses.replace(
            one, cause=dataclasses.replace(one.cause, next=_commands(one, baseline, candidate, judged, files))
        )
        if one.means == BROKEN
        else one
        for one in causes
    ]


def _commands(
    one: GateCause, baseline: str, candidate: str, judged: Scope, files: Mapping[tuple[str, str], Path]
) -> tuple[str, ...]:
    members = one.cause.members
    example = next((name for name in members if one.cause.example.startswith(f"{name[0]} [{name[1]}]")), None)
    cell = next((name for about, name in one.elsewhere if ("cell", name) in files), None)
    file = files.get(example) if example else files.get(("cell", cell)) if cell else None
    options, stack = _options(judged), [] if candidate == CURRENT else ["--with", candidate]
    trusting = ["--trust-code"] if _trusts(judged) else []
    ends = ["--good", baseline, "--bad", candidate]
    commands: list[list[str]] = []
    clauses = [
        id for id, _ in Counter(clause for clause, _ in members).most_common(_CLAUSES) if id in contract.clauses()
    ]
    run = [str(files["cell", name]) for name, _ in judged.specs if ("cell", name) in files]
    if run:
        spec = [word for path in run for word in ("--spec", path)]
        commands.append(["bisect", *spec, *trusting, *ends, *options])
        commands.append(["check", *stack, *spec, *trusting, *options])
    elif clauses:
        commands.append(["bisect", "--clause", example[0] if example else clauses[0], *ends, *options])
        chosen = [word for id in clauses for word in ("--clause", id)]
        commands.append(["check", *stack, *chosen, *options])
    elif cell is not None:
        commands.append(["bisect", "--spec", str(files["cell", cell]), *ends, *options])
    if file is not None:
        commands.append(["repro", *stack, str(file), *trusting])
    return tuple(shlex.join(["peft-harness", *command]) for command in commands)


def _options(judged: Scope) -> list[str]:
    """Return the options that differ from their defaults. Values of --env are not repeated: they may be secret."""
    words = ["--subject", judged.subject] if judged.subject != "hf-trainer" else []
    words += ["--device", judged.device] if judged.device != "cpu" else []
    for option, values in (("--preload", judged.preloads), ("--build", judged.build)):
        words += [word for value in values for word in (option, value)]
    return words + [word for name, _ in judged.added for word in ("--env", name)]


def _trusts(judged: Scope) -> bool:
    """Return whether the commands name code of the user's, which a file may name only with --trust-code."""
    specs = [json.loads(text) for _, text in judged.specs]
    return any(trust.needed(spec, judged.subject, judged.preloads) for spec in (specs or [None]))
