"""The page of a certificate of Watch: what was checked of a user's own run, how often, and what was not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from harness.reports.kinds import fields, number, objects, text
from harness.reports.web_model import BAD, GOOD, UNSURE, Page, Rows, environment_sentence, stack_section
from harness.words import counted

#: The word for each verdict of a check, by the words that pages know (`web_model.TONES`).
_WORDS = {"holds": "pass", "fails": "fail", "not judged": "skipped"}


def page(report: Mapping[str, Any]) -> Page:
    """Return the page of a certificate."""
    checks = objects(report.get("checks"))
    became = Counter(text(one.get("verdict"), 40) for one in checks)
    steps, seconds = fields(report.get("steps")), fields(report.get("seconds"))
    answer = f"{counted(became['holds'], 'check')} hold, {became['fails']} fail, {became['not judged']} were not judged"
    tone = BAD if became["fails"] else GOOD if became["holds"] and not report.get("failure") else UNSURE
    found = Page(f"Watch: {answer}", answer, tone, causes=[])
    found.said = [
        f"{counted(int(number(steps.get('made')) or 0), 'step')}, {int(number(steps.get('sampled')) or 0)} of them sampled. "
        f"Watch took {number(seconds.get('watch')) or 0:.2f} s of {number(seconds.get('run')) or 0:.1f} s.",
        environment_sentence(report.get("environment")),
    ]
    if failure := text(report.get("failure")):
        found.said.insert(0, f"Not judged: {failure}")
    found.rows = Rows("check")
    for one in sorted(
        checks, key=lambda check: ("fails", "not judged", "holds").index(text(check.get("verdict")) or "holds")
    ):
        _add(found.rows, one)
    found.sections = [stack_section({"": fields(fields(report.get("environment")).get("versions"))})]
    return found


def _add(rows: Rows, check: Mapping[str, Any]) -> None:
    name, verdict = text(check.get("check"), 100), text(check.get("verdict"), 40)
    rows.describe(name, text(check.get("says")))
    seen = [f"step {number(one.get('step'))}: {text(one.get('sentence'))}" for one in objects(check.get("findings"))]
    reasons = [
        f"{text(one.get('reason'))} ({number(one.get('times'))} times)" for one in objects(check.get("not_judged"))
    ]
    evidence = {
        "seen": seen,
        "not judged": reasons,
        "judged (times)": number(check.get("judged")),
        "at steps": number(check.get("steps")),
    }
    rows.add(name, text(check.get("says")), [_WORDS.get(verdict, verdict)], [evidence])
