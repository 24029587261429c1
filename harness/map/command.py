"""The commands `peft-harness map`, `bounds`, `propose` and `ask`."""

from __future__ import annotations

import dataclasses
import json as json_
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

import harness
from harness import contract, environment
from harness.errors import UsageError
from harness.files import write_whole
from harness.map import ask as asking
from harness.map import bounds as bounding
from harness.map import results_table, texts
from harness.map.results_table import FAILS, GOOD
from harness.progress import Progress, screen
from harness.reading import shown, shown_path
from harness.words import counted

#: Where a campaign's results are, if no directory is named.
DIRECTORY = Path(".peft-harness/map")

#: Stacks of the matrix that a table lists as not judged.
_MOST_LEFT = 400

#: Stacks that an answer to `ask` prints.
_MOST_ANSWERS = 8


def map_(
    matrix: Path | None,
    size: int,
    on: str,
    workers: int | None,
    directory: Path,
    clauses: Sequence[str],
    specs: Sequence[tuple[str, str]],
    merge: Sequence[Path],
    anew: bool,
    outputs: Mapping[str, Path | None],
) -> int:
    """Judge the stacks of a matrix, print and write the table, and return the exit code.

    - matrix: its file; None for the default one.
    - size: judge until this many of its stacks are judged; 0 judges nothing.
    - on, workers: where (`harness.processes.engine`).
    - directory: of the campaign.
    - clauses: judge these instead of the matrix's.
    - specs: judge these runs, as (name, RunSpec as JSON text).
    - merge: tables that are joined with this one.
    - anew: judge again what was judged.
    - outputs: "json", "html", "markdown", "csv" -> the file that gets it.

    The code is 0 if each judged stack holds, 1 if one does not, and 3 if not all that was asked for is judged.
    """
    from harness.map import campaign, matrix_file, stacks
    from harness.processes import engine

    tables = [results_table.load(file) for file in merge]
    found: list[dict[str, Any]] = []
    left: list[dict[str, str]] = []
    if size or not merge:
        engine.check(on)
        read = matrix_file.read(matrix)
        if clauses:
            read = matrix_file.judging(read, clauses)
        if not specs and read.specs:
            from harness.session.specs import load_all

            brought = load_all([Path(one) for one in read.specs], False)
            specs = [(one.name, json_.dumps(one.spec.to_json())) for one in brought]
        if specs:
            read = campaign.of_specs(read, clauses)
        at = campaign.Campaign(read, directory, tuple(specs), anew=anew)
        at.known = [cell for table in tables for cell in table["cells"]]
        with Progress(min(size, read.stacks), "map") as progress:
            at.go(on, workers, size, lambda done, total, text: progress.update(done, total, text=text))
        found = at.found
        left = [
            {"requirements": stacks.requirements(stack), "why": at.lost.get(stack, "not yet judged")}
            for device in read.devices
            for stack in at.plan()
            if at.todo(stack, device)
        ]
    body = results_table.table(found, tables, environment.now(), harness.__version__)
    if not left:
        judged = {cell["requirements"] for cell in body["cells"]}
        known = {one["requirements"]: one for table in tables for one in table.get("not_judged", [])}
        left = [one for name, one in known.items() if name not in judged]
    body["not_judged"] = left[:_MOST_LEFT]
    _write(body, outputs)
    console = screen()
    console.print(texts.sentence(body))
    shown, more = texts.screen_table(body)
    console.print(shown)
    if more:
        console.print(f"and {counted(more, 'stack')} more; --html or --markdown has them all")
    for lost in [one for one in left if one["why"] != "not yet judged"]:
        console.print(f"not judged: {lost['requirements']} ({lost['why']})", markup=False)
    for conflict in body["conflicts"][:10]:
        said = ", ".join(f"{one['verdict']} ({one['date'][:10]})" for one in conflict["verdicts"])
        console.print(f"conflict: {conflict['requirements']}, {conflict['clause']}: {said}", markup=False)
    written = [str(path) for path in outputs.values() if path is not None]
    if written:
        console.print(f"written: {', '.join(written)}", markup=False)
    says = {results_table.of_cell(cell) for cell in body["cells"]}
    incomplete = any(one["why"] != "not yet judged" for one in left) or not body["cells"] or body["conflicts"]
    return 1 if FAILS in says else 3 if incomplete or says - set(GOOD) else 0


def _write(body: Mapping[str, Any], outputs: Mapping[str, Path | None]) -> None:
    from harness.map import web

    writers = {"json": results_table.write, "html": web.write, "markdown": texts.markdown, "csv": texts.comma_separated}
    for name, path in outputs.items():
        if path is not None:
            write_whole(path, writers[name](body))


# ---- questions to the table ----


def cells_of(
    table: Mapping[str, Any], where: str, clauses: Sequence[str], run: str, device: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the cells of a table that answer a question, and the ids of the clauses that globs name.

    - run: "suites", whatever it is limited to; or the name of the runs of --spec.

    Raises UsageError if the table has no such cell.
    """
    chosen = list(contract.select(list(clauses))) if clauses else []
    cells = [cell for cell in table["cells"] if cell["run"].partition(",")[0] == run and cell["device"] == device]
    if not cells:
        what = f"by the suites on {device}" + "; name its run with --spec FILE" * any(
            cell["run"].startswith("run ") for cell in table["cells"]
        )
        if run != "suites":
            what = "with this run; peft-harness map --spec FILE judges it"
        raise UsageError(f"{where}: has no stack that was judged {what}")
    return cells, chosen


def ask(words: str, file: Path | None, clauses: Sequence[str], device: str, json: Path | None) -> int:
    """Print what a table says of a stack. Returns 0 if it holds, 1 if it fails, 3 if it was not judged."""
    table = results_table.load(file)
    cells, chosen = cells_of(table, _where(file), clauses, "suites", device)
    _require_judged(cells, chosen, clauses, file)
    question, foreign = asking.known(cells, asking.asked(words))
    found = texts.ordered(asking.matching(cells, question))
    judged = [
        cell
        for cell in found
        if any(one in cell["clauses"] for one in chosen) or not chosen or cell["state"] != "judged"
    ]
    near = [] if judged else asking.nearest(cells, question)
    console = screen(markup=False, soft_wrap=True)
    if foreign:
        verb = "is" if len(foreign) == 1 else "are"
        console.print(f"{', '.join(foreign)}: {verb} in no stack of the table, so the answer leaves that out")
    if json is not None:
        asked = {name: asking.pin(limits) or str(limits) for name, limits in question.items()}
        body = {"schema_version": 1, "asked": asked, "judged": judged, "nearest": near, "made": table["made"]}
        write_whole(json, json_.dumps(body, indent=1) + "\n")
    if len(judged) > 1:
        console.print(f"{len(judged)} judged stacks have {asking.as_words(question)}:")
    for cell in judged[:_MOST_ANSWERS]:
        _print_cell(cell, chosen, 10 if len(judged) == 1 else 2)
    if len(judged) > _MOST_ANSWERS:
        console.print(f"and {len(judged) - _MOST_ANSWERS} more, which --json has")
    if not judged:
        console.print(f"not judged: {asking.as_words(question)}")
        for sentence in asking.outside(cells, question):
            console.print(sentence)
        console.print("The nearest judged stacks:" if near else "The table has no judged stack.")
        for cell in near:
            _print_cell(cell, chosen, 2)
        console.print(f"Next:\n  peft-harness check --with {shlex.quote(words)}")
        return 3
    says = {results_table.of_cell(cell, chosen) for cell in judged}
    return 1 if says == {FAILS} else 0 if says <= set(GOOD) and not foreign else 3


def _require_judged(
    cells: Sequence[Mapping[str, Any]], chosen: Sequence[str], asked: Sequence[str], file: Path | None
) -> None:
    """Raise UsageError if clauses were asked for and no cell was judged by any of them."""
    judged = {clause for cell in cells for clause in cell["clauses"]}
    if chosen and not judged & set(chosen):
        chapters = ", ".join(sorted({f"{clause.partition('-')[0]}-*" for clause in judged}))
        raise UsageError(f"{_where(file)}: no stack was judged by {', '.join(asked)}; it has clauses of {chapters}")


def _where(file: Path | None) -> str:
    return shown_path(file or results_table.OURS)


def _print_cell(cell: Mapping[str, Any], clauses: Sequence[str], most: int = 10) -> None:
    """Print a stack, what it says, and its causes."""
    console = screen(markup=False, soft_wrap=True)
    wanted = set(clauses) or set(cell["clauses"])
    says = results_table.of_cell(cell, clauses) if cell["state"] == "judged" else cell["state"]
    count = counted(len(wanted & set(cell["clauses"])), "clause")
    console.print(
        f"{says}: {cell['requirements']} ({count}, {cell['date'][:10]}, {cell['machine']}, {counted(cell['cores'], 'core')})"
    )
    if cell["sentence"]:
        console.print(f"  {cell['sentence']}")
    for sentence in cell["requires"]:
        console.print(f"  requires: {sentence}")
    causes = [cause for cause in cell["causes"] if wanted & set(cause["clauses"])]
    for cause in causes[:most]:
        console.print(f"  {', '.join(cause['clauses'][:4])}: {cause['sentence']} ({counted(cause['cases'], 'case')})")
    if len(causes) > most:
        console.print(f"  and {counted(len(causes) - most, 'more cause')}")
    unjudged = [
        clause
        for clause in sorted(wanted)
        if results_table.state(cell["clauses"].get(clause, {}).get("verdict")) == "not judged"
    ]
    if unjudged and cell["state"] == "judged":
        console.print(f"  not judged: {', '.join(unjudged[:12])}{' and more' * (len(unjudged) > 12)}")


def bounds(
    file: Path | None, clauses: Sequence[str], packages: Sequence[str], run: str, device: str, json: Path | None
) -> int:
    """Print for each package between which releases the clauses hold. Returns 0, or 3 if there is no such release."""
    table = results_table.load(file)
    cells, chosen = cells_of(table, _where(file), clauses, run, device)
    _require_judged(cells, chosen, clauses, file)
    moving = texts.packages(cells)
    wanted = [str(canonicalize_name(name)) for name in packages] or moving
    for name in wanted:
        if name not in {one for cell in cells for one in cell["stack"]}:
            raise UsageError(f"--package {shown(name)}: the table has no stack with it; it has {', '.join(moving)}")
    found = bounding.bounds(cells, chosen, wanted)
    console = screen(markup=False, soft_wrap=True)
    what = ", ".join(chosen) or "all clauses of the table, known defects allowed"
    console.print(f"# {counted(len(cells), 'stack')}, {what}; table of {table['made'][:10]}")
    console.print("# Each package by itself: a release is in the range if one judged stack with it holds.")
    for one in found:
        console.print(f"# above: {one.above}")
        console.print(f"# below: {one.below}")
        if one.undecided:
            console.print(f"# undecided, and not excluded: {', '.join(one.undecided)}")
        console.print(f"# shown by: {'; '.join(dict.fromkeys(reversed(one.shown_by)))}")
        console.print(one.line())
    for name in wanted:
        if name not in [one.package for one in found]:
            console.print(f"# {name}: no judged stack holds")
    if json is not None:
        body = {
            "schema_version": 1,
            "clauses": chosen,
            "bounds": [dataclasses.asdict(one) | {"line": one.line()} for one in found],
        }
        write_whole(json, json_.dumps(body, indent=1) + "\n")
    return 0 if len(found) == len(wanted) else 3


def propose(
    words: str,
    want: Sequence[str],
    file: Path | None,
    clauses: Sequence[str],
    specs: Sequence[tuple[str, str]],
    device: str,
    table_only: bool,
    tries: int,
    directory: Path,
    json: Path | None,
) -> int:
    """Print the smallest change of pins.

    Returns 0 if there is one, 1 if all that was judged fails, 3 if too little was judged.
    """
    from harness.map import campaign, matrix_file
    from harness.map import propose as proposing

    wanted = proposing.wanted(want)
    table = results_table.load(file)
    none = matrix_file.Matrix("the default matrix", {})
    run = campaign.run_name(tuple(specs), none).partition(",")[0]
    cells, chosen = cells_of(table, _where(file), clauses, run, device)
    if table_only:
        _require_judged(cells, chosen, clauses, file)
    asking.check_names(cells, [one.name for one in wanted], least=len(wanted) if table_only else 0)
    pins = proposing.baseline(words, table_only)
    console = screen(markup=False, soft_wrap=True)
    resolver_says: list[str] = []
    judge, more = None, []
    if not table_only:
        from harness.gate.environments import Unresolvable

        def judge(stack: Mapping[str, str]) -> Mapping[str, Any] | None:
            return _judged_now(stack, chosen, tuple(specs), device, directory)

        def limited() -> Any:
            try:
                for count, stack in enumerate(proposing.candidates(pins, wanted)):
                    if count >= tries:
                        return
                    yield stack
            except Unresolvable as error:
                resolver_says.append(str(error))

        more = limited()
    answer = proposing.propose(pins, wanted, cells, chosen, judge, more)
    if chosen:
        others = f" and {len(chosen) - 8} more" if len(chosen) > 8 else ""
        console.print(f"must hold: {', '.join(chosen[:8])}{others}")
    elif answer.baseline_judged:
        count = len(answer.clauses)
        console.print(f"must hold: {counted(count, 'clause')} that {'holds' if count == 1 else 'hold'} on the baseline")
    else:
        console.print("the baseline is not in the table, so all clauses that were judged must hold")
    for requirements, reason in answer.in_the_way[:10]:
        console.print(f"in the way: {requirements}: {reason}")
    for requirements, reason in answer.undecided[:10]:
        console.print(f"undecided: {requirements}: {reason}")
    for sentence in resolver_says:
        console.print(f"does not resolve: {sentence}")
    if json is not None:
        body = {
            "schema_version": 1,
            "baseline": answer.baseline,
            "want": list(want),
            "clauses": list(answer.clauses),
            "proposal": answer.pins() if answer.proposal else None,
            "changes": answer.changes() if answer.proposal else [],
            "in_the_way": [{"requirements": one, "reason": why} for one, why in answer.in_the_way],
            "undecided": [{"requirements": one, "reason": why} for one, why in answer.undecided],
        }
        write_whole(json, json_.dumps(body, indent=1) + "\n")
    if answer.proposal is None:
        if answer.in_the_way or resolver_says:
            judged = counted(len(answer.in_the_way) + len(answer.undecided), "judged stack")
            console.print(f"nothing to propose: {judged} with {', '.join(want)}, and none holds; others may")
            return 3 if answer.undecided else 1
        console.print(
            f"no judged stack has {', '.join(want)}, so there is nothing to propose; "
            "leave --table-only away to judge some"
        )
        return 3
    cell = answer.proposal
    console.print(f"proposal: {', '.join(answer.changes()) or 'nothing has to move'}")
    beside = f" with {', '.join(answer.beside())}" if answer.beside() else ""
    how = f"{counted(len(cell['clauses']), 'clause')}, {cell['machine']}, {counted(cell['cores'], 'core')}"
    console.print(f"judged on {cell['date'][:10]}{beside} ({how})")
    for line in answer.pins():
        console.print(f"  {line}")
    if not answer.changes():
        return 0
    console.print("Next:")
    console.print(
        f"  peft-harness gate --baseline {shlex.quote(words)} --candidate {shlex.quote(' '.join(answer.pins()))}"
    )
    return 0


def _judged_now(
    stack: Mapping[str, str], clauses: Sequence[str], specs: tuple[tuple[str, str], ...], device: str, directory: Path
) -> Mapping[str, Any] | None:
    """Judge one stack by the default matrix's clauses. Returns its cell; None if it could not be judged."""
    from harness.map import campaign, matrix_file

    read = matrix_file.read()
    matrix = dataclasses.replace(
        matrix_file.judging(read, clauses) if clauses else read,
        releases={name: (version,) for name, version in stack.items()},
        pairing=("all",),
        devices=(device,),
    )
    if specs:
        matrix = campaign.of_specs(matrix, clauses)
    at = campaign.Campaign(matrix, directory, specs)
    with Progress(1, "propose") as progress:
        at.go("local", 1, 1, lambda done, total, text: progress.update(done, total, text=text))
    (planned,) = at.plan()
    results = at.results(planned, device)
    if not results:
        return None
    cells = results_table.table(results, [], environment.now(), harness.__version__)["cells"]
    return cells[0] if cells else None
