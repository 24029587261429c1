"""The page of `gate`: both stacks, what differs, and each case with both verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from harness.reports.kinds import fields, number, objects, text, texts
from harness.reports.web_model import (
    BAD,
    GOOD,
    KNOWN,
    UNSURE,
    Cell,
    Page,
    Rows,
    Section,
    causes_of,
    curves_of,
    environment_sentence,
    stack_section,
)
from harness.reports.web_suites import cases_of, check_command, evidence_of
from harness.words import counted

_TONES = {"safe": GOOD, "unsafe": BAD, "inconclusive": UNSURE}
_MEANS = {"broken": BAD, "lost": UNSURE, "mended": GOOD, "note": ""}
_SIDES = ("baseline", "candidate")

#: Findings that a table of the page lists: about -> title.
_TITLES = {
    "cell": "Runs that only one stack trains",
    "resume": "Checkpoints resumed by the other stack",
    "inference": "Adapters loaded by the other stack",
    "files": "Files of checkpoints",
    "throughput": "Throughput and memory",
    "interface": "Interface of upstream",
}

#: Rows of a table. The report has all.
MOST = 150


def page(report: Mapping[str, Any]) -> Page:
    """Return the page of a gate's report."""
    verdict = text(report.get("verdict"), 40)
    sides = {name: fields(report.get(name)) for name in _SIDES}
    asked = {name: text(side.get("requirements"), 300) or "?" for name, side in sides.items()}
    causes, members = causes_of(report)
    found = Page(f"peft-harness gate: {verdict}", verdict, _TONES.get(verdict, UNSURE), causes=causes)
    found.answer += f": {_why(report, verdict, causes)}"
    found.said = [f"From {asked['baseline']} to {asked['candidate']}.", *_said(report, sides)]
    found.rows = _rows(sides, members, asked["candidate"])
    findings = objects(report.get("findings"))
    if causes is None:
        found.sections += [_clauses(findings)]
    found.sections += [stack_section({name: fields(side.get("versions")) for name, side in sides.items()})]
    found.sections += [_numbers(found, fields(report.get("numbers")))]
    found.sections += [_crossed(fields(report.get("crossed")))]
    found.sections += [_about(findings, about, title) for about, title in _TITLES.items()]
    found.sections += [_timing(report, findings)]
    found.sections = [section for section in found.sections if section.body]
    return found


def _why(report: Mapping[str, Any], verdict: str, causes: list[Any] | None) -> str:
    if verdict == "safe":
        return "what held on the baseline holds on the candidate"
    if causes:
        return counted(len(causes), "cause")
    findings = objects(report.get("findings"))
    parts = []
    for means, words in (("broken", "broken"), ("lost", "cannot be judged any more")):
        if count := sum(one.get("means") == means for one in findings):
            parts.append(f"{count:,} {words}")
    return ", ".join(parts) or "see below"


def _said(report: Mapping[str, Any], sides: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for one in objects(report.get("requires")):
        yield text(one.get("sentence"))
    yield text(report.get("compared"))
    yield from _not_judged(report)
    for name, side in sides.items():
        if since := text(side.get("known_since"), 40):
            yield f"{name}: results cached on {since}."
        environment = fields(fields(side.get("report")).get("environment"))
        yield f"{name}: {environment_sentence(environment)}"


def _not_judged(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield what this gate left out, in sentences."""
    outside = fields(report.get("outside"))
    clauses, runs = texts(outside.get("clauses")), texts(outside.get("runs"))
    cases = sum(int(number(count) or 0) for count in fields(outside.get("cases")).values())
    named = ((len(clauses), "clause"), (cases, "case"), (len(runs), "run"))
    if parts := [counted(count, noun) for count, noun in named if count]:
        yield f"Outside of the scope {text(outside.get('scope'), 300)}: {', '.join(parts)}."
    for one in objects(report.get("left_out")):
        yield f"Left out on both sides: {text(one.get('package'), 100)} ({text(one.get('reason'))})."


def _rows(sides: Mapping[str, Mapping[str, Any]], members: Mapping[tuple[str, str], int], asked: str) -> Rows:
    reports = {name: fields(side.get("report")) for name, side in sides.items()}
    rows = Rows("clause", _SIDES, check_command(fields(reports["candidate"].get("environment")), asked))
    cases = {name: _numbered(reports[name]) for name in _SIDES}
    for key in dict.fromkeys([*cases["candidate"], *cases["baseline"]]):
        was, now = cases["baseline"].get(key, {}), cases["candidate"].get(key, {})
        evidence = [evidence_of(was), evidence_of(now)]
        verdicts = [text(case.get("verdict"), 40) for case in (was, now)]
        clause, scenario, _ = key
        rows.describe_clause(clause)
        spec = now.get("spec") or was.get("spec")
        rows.add(
            clause, scenario, verdicts, evidence, spec, members.get((clause, scenario), 0), text(now.get("repeat"), 500)
        )
    return rows


def _numbered(report: Mapping[str, Any]) -> dict[tuple[str, str, int], Mapping[str, Any]]:
    """Return the cases of a side by clause, scenario, and how many of that name came before: a few tests share a name."""
    found: dict[tuple[str, str, int], Mapping[str, Any]] = {}
    before: Counter[tuple[str, str]] = Counter()
    for clause, case in cases_of(objects(report.get("clauses"))):
        name = (clause, text(case.get("scenario"), 300))
        found[(*name, before[name])] = case
        before[name] += 1
    return found


def _clauses(findings: list[Mapping[str, Any]]) -> Section:
    """Return the findings about clauses, for a report without causes."""
    note = "This report names no causes: an older release of peft-harness wrote it. These are its findings."
    return _findings([one for one in findings if one.get("about") == "clause"], "clauses", "Clauses", note)


def _about(findings: list[Mapping[str, Any]], about: str, title: str) -> Section:
    chosen = [one for one in findings if one.get("about") == about]
    return _findings(chosen, about, title)


def _findings(findings: list[Mapping[str, Any]], id: str, title: str, note: str = "") -> Section:
    rows: list[list[str | Cell]] = []
    for finding in findings[:MOST]:
        means = text(finding.get("means"), 40)
        word = {"mended": "fixed"}.get(means, means)
        rows.append(
            [
                Cell(word, _MEANS.get(means, "")),
                Cell(text(finding.get("where"), 300), code=True),
                text(finding.get("sentence")),
            ]
        )
    head = ("what it means", "where", "what differs")
    return Section(
        f"about-{id}", f"{title} ({len(findings):,})", head, rows, note, open=bool(note), more=len(findings) - len(rows)
    )


def _numbers(found: Page, numbers: Mapping[str, Any]) -> Section:
    """Return the runs that both stacks trained, those that differ first."""
    tones = {"bit-equal": GOOD, "within": KNOWN, "changed": BAD}
    order = ["changed", "not comparable", "within", "bit-equal"]

    def rank(name: str) -> int:
        return order.index(kinds[name]) if kinds[name] in order else 1

    kinds = {name: text(fields(part).get("kind"), 40) for name, part in numbers.items()}
    names = sorted((name for name in numbers if kinds[name] != "bit-equal"), key=rank)
    equal = [text(name, 200) for name in numbers if kinds[name] == "bit-equal"]
    rows: list[list[str | Cell]] = []
    for name in names[:MOST]:
        part = fields(numbers[name])
        kind = kinds[name]
        gaps = [number(part.get(what)) for what in ("loss", "gradient", "adapter")]
        at = None
        if (curves := curves_of(part.get("curves"))) is not None:
            at = len(found.curves)
            found.curves.append(curves)
        step = number(part.get("step"))
        where = f"step {int(step)}: " if step is not None else ""
        what = text(part.get("what"), 300)
        rows.append(
            [
                Cell(text(name, 200), code=True),
                Cell(kind, tones.get(kind, UNSURE)),
                Cell(f"{where}{what}" if what else "", curves=at),
                *("" if gap is None else f"{gap:.2g}" for gap in gaps),
            ]
        )
    if equal:
        rows.append([Cell(counted(len(equal), "run")), Cell("bit-equal", GOOD), ", ".join(equal), "", "", ""])
    title = f"Runs trained on both stacks ({len(numbers):,}; {len(names):,} not bit-equal)"
    head = ("run", "numbers", "differs first", "loss", "gradient", "adapter")
    note = "The last three columns are the largest differences, divided by the largest value."
    return Section("numbers", title, head, rows, note, open=bool(names), more=max(0, len(names) - MOST))


def _crossed(crossed: Mapping[str, Any]) -> Section:
    """Return how many checkpoints and adapters each stack read that the other wrote."""
    rows: list[list[str | Cell]] = []
    ways = {
        "candidate": "upgrade: the candidate reads the baseline's",
        "baseline": "roll-back: the baseline reads the candidate's",
    }
    for reader, way in ways.items():
        counts = fields(crossed.get(reader))
        if counts:
            rows.append([way, *(str(len(texts(counts.get(what)))) for what in ("resumed", "loaded"))])
    note = "How many each stack could read. What then differs from where it was written is listed below."
    head = ("way", "checkpoints resumed", "adapters loaded")
    return Section("crossed", "Checkpoints and adapters of the other stack", head, rows, note, open=False)


def _timing(report: Mapping[str, Any], findings: list[Mapping[str, Any]]) -> Section:
    """Return the intervals of the timing: those that the report lists, else those of its findings."""
    timed = dict(fields(report.get("timing")))
    for finding in findings:
        details = fields(finding.get("details"))
        if finding.get("about") == "throughput" and "wall" in details:
            timed.setdefault(text(details.get("shape"), 100), details)
    rows: list[list[str | Cell]] = []
    for shape, details in list(timed.items())[:MOST]:
        margin = number(fields(details).get("margin")) or 0.0
        for metric, name in (("wall", "time"), ("cpu", "processor time")):
            one = fields(fields(details).get(metric))
            low, middle, high = (number(one.get(end)) for end in ("low", "estimate", "high"))
            if low is None or middle is None or high is None:
                continue
            words = f"{middle:+.2%} ({low:+.2%} to {high:+.2%})"
            cell = Cell(words, interval=(float(low), float(middle), float(high), float(margin)))
            rows.append(
                [Cell(text(shape, 100), code=True), name, cell, f"{margin:.0%}", text(fields(details).get("word"), 40)]
            )
    note = "The change of an optimizer step's time, candidate beside baseline, with its 99 % interval. More than 0 is slower."
    head = ("run", "what", "change", "margin", "judged")
    return Section("timing", "Time of a step", head, rows, note)
