"""The text of a failed case: the block under FAILURES, the line of the short summary, and the file that repeats it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from _pytest._code.code import ReprEntryNative, ReprExceptionInfo, ReprFileLocation, ReprTraceback

from harness import contract, trust
from harness.contract.clause import Clause
from harness.errors import UsageError
from harness.files import reason, write_whole
from harness.runs.lifecycle import describe
from harness.session import case_file
from harness.session.state import State
from harness.spec import changes
from harness.subjects import Traits
from harness.verdict import AMBIGUOUS, NOT_COMPARABLE, Case, Verdict

#: Findings in one block. The report (--json) has all of them.
_FINDINGS = 8

#: How the lines of a block begin that are the same for every case of a clause.
_STATEMENT, _SOURCE = "  clause    ", "  upstream  "


def block(state: State, case: Case, verdict: Verdict) -> list[str]:
    """Return the lines that describe a verdict that does not hold. Write the file that repeats the case (`Case.repeat`)."""
    clause = contract.clauses()[case.clause]
    ending = {AMBIGUOUS: "is undecided", NOT_COMPARABLE: "cannot be compared"}.get(verdict.outcome, "does not hold")
    lines = [
        f"{case.clause} {ending}: scenario {case.scenario}, subject {case.subject}, {case.device}",
        f"{_STATEMENT}{clause.statement}",
        *sources(clause, state.traits),
        f"  expected  {verdict.expected}",
        *_labelled("seen", verdict.seen[:_FINDINGS]),
    ]
    if len(verdict.seen) > _FINDINGS:
        lines.append(f"            and {len(verdict.seen) - _FINDINGS} more")
    if case.drawn is not None and case.specs:
        lines.append(f"  run       {', '.join(changes(case.specs[0])) or 'the default run'}")
    lines += _labelled("life", [describe(act) for act in case.life or []])
    if state.in_theirs:
        case.repeat = f"pytest {shlex.quote(case.nodeid)}"
        return [*lines, f"  repeat    {case.repeat}"]
    try:
        case.repeat = f"peft-harness repro {_write_case(state, case)}{_trust(state, case)}"
        lines.append(f"  repeat    {case.repeat}")
    except (OSError, UsageError) as error:
        lines.append(f"  repeat    no case file could be written in .peft-harness ({reason(error)})")
    return lines


def sources(clause: Clause, who: Traits) -> list[str]:
    """Return the lines that say where upstream does what a clause is about.

    A place of transformers says nothing of a loop, nor of a class that overrides the method there. Then its own is named.
    """
    if not who.foreign:
        return [f"{_SOURCE}{clause.source}"]
    own, lines = who.own_class, []
    for place in clause.source.split("; "):
        methods = [name for found in _METHODS.findall(place) for name in found.split(", ")]
        mine = [] if own is None else [name for name in methods if name in vars(own)]
        for name in mine:
            lines.append(
                f"  yours     {own.__name__ if own else ''}.{name}, which overrides that of transformers.Trainer"
            )
        if not mine and (own is not None or not place.startswith("transformers/")):
            lines.append(f"{_SOURCE}{place}")
    return lines


#: "Trainer.a, b" in the source of a clause: "a, b".
_METHODS = re.compile(r"\(Trainer\.([\w, ]+)\)")


def _trust(state: State, case: Case) -> str:
    """Return the option that the case file needs, if it names code of the user's."""
    # A test of the suites has its own specs.
    spec = case.specs[0] if (case.drawn or case.brought) and case.specs else None
    return " --trust-code" if trust.needed(spec, case.subject, state.preload) else ""


def _labelled(label: str, sentences: Sequence[str]) -> list[str]:
    return [f"  {label if index == 0 else '':10}{sentence}" for index, sentence in enumerate(sentences)]


def representation(item: pytest.Item, headline: str, lines: Sequence[str]) -> ReprExceptionInfo:
    """Return what pytest prints for a failed test, in a form that xdist can send and JUnit can read.

    - headline: the sentence for the short summary and for JUnit's message.
    - lines: the text for the FAILURES section.
    """
    file, line, _ = item.location
    entry = ReprEntryNative([f"{text}\n" for text in lines])
    return ReprExceptionInfo(ReprTraceback([entry], None, "native"), ReprFileLocation(file, (line or 0) + 1, headline))


def headline_of(test: pytest.TestReport) -> str:
    """Return the sentence that the short summary shows for a failed test."""
    crash = getattr(test.longrepr, "reprcrash", None)
    return str(crash.message if crash is not None else test.longrepr or "").partition("\n")[0]


def drop_repeated_statements(tests: Sequence[pytest.TestReport]) -> None:
    """Remove a clause's statement and source from all failure texts but the first that has them."""
    printed: set[str] = set()
    for test in tests:
        for entry in getattr(getattr(test.longrepr, "reprtraceback", None), "reprentries", ()):
            if isinstance(entry, ReprEntryNative):
                entry.lines = [line for line in entry.lines if line not in printed]
                printed.update(line for line in entry.lines if line.startswith((_STATEMENT, _SOURCE)))


def _write_case(state: State, case: Case) -> Path:
    """Write the file that `peft-harness repro` takes to repeat this case alone. Return its path."""
    directory = Path(".peft-harness")
    if not (directory / ".gitignore").exists():
        write_whole(directory / ".gitignore", "*\n")
    path = directory / "cases" / f"{case_file.file_stem(case.clause, case.scenario)}.json"
    body = case_file.body(case, state.preload)
    # Two sessions in one directory may write it at once.
    write_whole(path, json.dumps(body, indent=1) + "\n")
    return path
