"""Group the cases that do not hold by their cause, across clauses.

1. `unexplained` finds the cases that need a cause.
2. `_roots` gives each its root: the error that ended its run, the number that differs, what is missing, or its words.
3. Cases with the same root are one `Cause`, in one sentence, with what it reaches.
"""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness import contract
from harness.causes import reach, root
from harness.causes.cause import Cause
from harness.causes.root import Error
from harness.contract.clause import PROFILES
from harness.verdict import AMBIGUOUS, FAIL, NOT_COMPARABLE, PASS, SKIPPED, UNEXPECTED_PASS, Case
from harness.words import counted

#: Verdicts of a case that needs a cause. The others need one if the error that ended their run is a cause of these.
_NEED = (FAIL, UNEXPECTED_PASS, AMBIGUOUS)
_MAY = (NOT_COMPARABLE, SKIPPED)

#: Clauses in the command that judges a cause again.
_FEWEST = 3

#: What a case has in common with others of its cause: an Error, or words.
Root = Error | tuple[str, ...]


def group(
    cases: Sequence[Case],
    failing: Callable[[Case], bool] | None = None,
    changed: Iterable[str] = (),
    check: str = "peft-harness check",
) -> list[Cause]:
    """Return the causes of all cases that do not hold, the largest first. Each such case is in exactly one.

    - cases: all cases of one stack. Those that hold say how far a cause reaches.
    - failing: which cases need a cause. None: those that fail, pass unexpectedly or are undecided. Cases that could not be
      judged because of the same error join them in any case.
    - changed: the packages that differ between two stacks. Only these are then to blame.
    - check: the command that judges clauses of this stack, such as "peft-harness check --with peft==0.21.2".
    """
    need = [case for case in cases if (failing or _needs)(case)]
    named = {id(case) for case in need}
    rest = [case for case in cases if id(case) not in named]
    found = _roots(need, rest)
    errors = [key for key in dict.fromkeys(found) if isinstance(key, Error)]
    groups: dict[Root, list[Case]] = defaultdict(list)
    for case, key in zip(need, found, strict=True):
        groups[_with_kind(key, errors)].append(case)
    for case in rest:
        if case.verdict in _MAY and (followed := _followed(case, errors)) is not None:
            groups[followed].append(case)
    holding = [case for case in rest if case.verdict == PASS]
    causes = [_cause(key, members, holding, tuple(changed), check) for key, members in groups.items()]
    weight = {id(cause): _weight(members) for cause, members in zip(causes, groups.values(), strict=True)}
    return sorted(causes, key=lambda cause: weight[id(cause)], reverse=True)


#: Whose a failure is, what its maintainer can mend first.
WHOSE = ("yours", "", "convention", "upstream's")


def by_root(causes: Sequence[Cause], cases: Sequence[Case]) -> list[Cause]:
    """Return causes of somebody's own class or loop in the order to read them in, and not the largest first.

    One fault breaks many clauses. The first in the contract's order is nearest to it: a wrong loss comes before the resumed
    run that it changes, too. Before that, what any training must do comes before conventions.
    """
    clauses = contract.clauses()
    order = {id: (PROFILES.index(clause.profile), number) for number, (id, clause) in enumerate(clauses.items())}
    whose = {(case.clause, case.scenario): WHOSE.index(case.whose) for case in cases}

    def place(cause: Cause) -> tuple[int, tuple[int, int], int]:
        first = min((whose[member], order[member[0]]) for member in cause.members)
        return *first, -sum(order[clause] == first[1] for clause, _ in cause.members)

    return sorted(causes, key=place)


def index(causes: Sequence[Cause]) -> dict[tuple[str, str], int]:
    """Return (clause, scenario) -> the number of the case's cause, from 0."""
    return {member: number for number, cause in enumerate(causes) for member in cause.members}


def _needs(case: Case) -> bool:
    # A case that was compared with nothing, and gives no reason, is undecided because of its run.
    return case.verdict in _NEED or (case.verdict == NOT_COMPARABLE and not case.reason)


def _weight(members: Sequence[Case]) -> tuple[bool, int]:
    return (any(case.verdict == FAIL for case in members), len(members))


# ---- the root of each case ----


def _roots(need: Sequence[Case], rest: Sequence[Case]) -> list[Root]:
    held = Counter(error for case in rest if case.verdict == PASS for error in set(root.recorded(case)))
    struck = Counter(error for case in need for error in set(root.recorded(case)))
    places: dict[tuple[str, str], Error] = {}
    for case in need:
        for error in root.recorded(case):
            places.setdefault(error.words, error)
    first = [_own(case, held, struck, places) for case in need]
    # A finding such as "[]" follows from the error of its run, which another clause tells of.
    runs: dict[str, Error] = {}
    for case, key in zip(need, first, strict=True):
        if isinstance(key, Error) and case.specs and not _ours(key):
            runs.setdefault(reach.identity(case.specs[0]), key)
    found: list[Root] = []
    for case, key in zip(need, first, strict=True):
        mine = [runs[name] for spec in case.specs if (name := reach.identity(spec)) in runs]
        follows = not isinstance(key, Error) or _ours(key)
        found.append(mine[0] if mine and follows and case.verdict != UNEXPECTED_PASS else key)
    return found


def _own(
    case: Case, held: Mapping[Error, int], struck: Mapping[Error, int], places: Mapping[tuple[str, str], Error]
) -> Root:
    """Return the root that a case names itself."""
    if case.verdict == UNEXPECTED_PASS:
        return root.other(case)
    errors = root.recorded(case)
    quoted = [error for error in errors if error.package and root.mentions(case, error)]
    # An error that more cases hold with is one that they ask for.
    guilty = [error for error in errors if error.package and struck[error] > held.get(error, 0)]
    if chosen := [*quoted, *guilty]:
        return chosen[0] if case.drawn is None or quoted else root.other(case)
    said = root.spoken(case)
    if said is not None:
        return _placed(said, places)
    return root.other(case)


def _placed(said: Error, places: Mapping[tuple[str, str], Error]) -> Error:
    """Return an error that only words tell of as that of a known place, if its words are the same."""
    return places.get(said.words, Error(*said.words))


def _ours(error: Error) -> bool:
    """Return whether an error was raised by a test that missed something, rather than by upstream or by a run."""
    return not error.package and error.kind in (
        "LookupError",
        "IndexError",
        "KeyError",
        "StopIteration",
        "AttributeError",
    )


def _with_kind(key: Root, errors: Sequence[Error]) -> Root:
    """Return the same error with its type, if it is one that a case quotes by its words alone."""
    if not isinstance(key, Error) or key.kind or not key.message:
        return key
    return next((one for one in errors if one.kind and one.words[1] == key.words[1]), key)


def _followed(case: Case, errors: Sequence[Error]) -> Error | None:
    """Return the cause that a case which was not judged follows from."""
    for error in root.recorded(case):
        if error in errors:
            return error
    said = root.spoken(case)
    if said is None:
        return None
    same = (one for one in errors if one.words == said.words)
    whole = next(same, None) or _with_kind(said, errors)
    return whole if isinstance(whole, Error) and whole in errors else None


# ---- what a cause says ----


def _cause(key: Root, members: Sequence[Case], holding: Sequence[Case], changed: tuple[str, ...], check: str) -> Cause:
    example = min(members, key=lambda case: (case.verdict != FAIL, not _tells(case, key), len(case.scenario)))
    clauses = Counter(case.clause for case in members)
    runs, kept = _runs(key, members), _kept(key, clauses, holding)
    globs = " ".join(f"--clause {shlex.quote(clause)}" for clause, _ in clauses.most_common(_FEWEST))
    return Cause(
        sentence=_sentence(key, example, len(members)),
        members=tuple((case.clause, case.scenario) for case in members),
        reaches=reach.reaches(runs, kept),
        packages=_packages(key, changed),
        next=(*([example.repeat] if example.repeat else []), f"{check} {globs}"),
        example=f"{example.clause} [{example.scenario}]: {_line(root.sentences(example)[0])}",
    )


def _runs(key: Root, members: Sequence[Case]) -> list[dict[str, Any]]:
    """Return the specs of the runs that a cause ended, or else those that the cases judged."""
    found = []
    for case in members:
        run = next((one.run for one in root.recorded(case) if one == key and one.run is not None), 0)
        found += case.specs[run : run + 1]
    return found


def _kept(key: Root, clauses: Iterable[str], holding: Sequence[Case]) -> list[dict[str, Any]]:
    """Return the specs of the runs that a cause has not reached: for an error all, else those of the same clauses."""
    ids = None if isinstance(key, Error) else set(clauses)
    return [spec for case in holding if (ids is None or case.clause in ids) and not case.raised for spec in case.specs]


def _tells(case: Case, key: Root) -> bool:
    return not isinstance(key, Error) or root.quotes(root.sentences(case)[0], key)


def _packages(key: Root, changed: tuple[str, ...]) -> tuple[str, ...]:
    calls = [key.package, *reversed(key.calls)] if isinstance(key, Error) and key.package else []
    on_the_way = tuple(dict.fromkeys(call.partition("/")[0] for call in calls))
    if changed:
        return tuple(name for name in on_the_way if name in changed) or (changed if len(changed) == 1 else ())
    return on_the_way


def _sentence(key: Root, example: Case, count: int) -> str:
    if isinstance(key, Error):
        words = _line(_message(key, example))
        what = f"{key.kind}: {words}" if key.kind and words else key.kind or words
        if not key.package:
            return what
        return f"{key.function} of {key.package} ({key.file}) raises {what}"
    kind, what, *more = key
    if kind == "holds":
        return f"holds, although suites/expectations says that it must fail: {_line(what)}"
    if kind == "differs":
        how = f"is {more[0]} what it must be" if more[0].endswith(" times") else f"differs ({more[0]})"
        return f"the {what.removeprefix('the ')} {how}; for example: {_line(root.sentences(example)[0])}"
    if kind == "missing":
        return f"{what} is missing; for example: {_line(root.sentences(example)[0])}"
    first = _line(root.sentences(example)[0])
    expected = example.evidence.get("expected")
    if len(key) > 2 and isinstance(expected, str):  # the words say nothing of themselves
        return f"{example.clause} sees {first}, expected {_line(expected)}"
    return first if count == 1 else f"{first} (and alike in {counted(count - 1, 'other case')})"


def _message(key: Error, example: Case) -> str:
    """Return an error's message with its numbers and paths, as one case has it."""
    said = root.spoken(example)
    every = [*root.recorded(example), *([said] if said else [])]
    return next((one.message for one in every if one.words[1] == key.words[1]), key.message)


def _line(text: str) -> str:
    line = " ".join(text.strip().partition("\n")[0].split())
    return line if len(line) <= 300 else f"{line[:297]}..."
