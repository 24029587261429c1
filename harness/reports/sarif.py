"""A report as SARIF 2.1.0, which code scanning shows at the line of the pin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import harness
from harness.reports import kinds, problems
from harness.reports.problems import Problem

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

#: Results of a run. GitHub takes 25,000 and shows 5,000.
MOST = 1000


def write(report: Mapping[str, Any]) -> str:
    """Return the SARIF log of a report: a result for each problem, the gravest first.

    A problem without a known line has no location, so that a viewer shows it for the repository.
    Raises UsageError if it is no report.
    """
    found = problems.of(report)
    left_out = len(found) - MOST
    rules = [name for name in problems.RULES if any(problem.rule == name for problem in found)]
    run = {
        "tool": {
            "driver": {
                "name": "peft-harness",
                "semanticVersion": harness.__version__,
                "rules": [_rule(name) for name in rules],
            }
        },
        "automationDetails": {"id": f"peft-harness/{kinds.kind(report)}/"},
        "columnKind": "unicodeCodePoints",
        "results": [_result(problem, rules) for problem in found[:MOST]],
    }
    if left_out > 0:
        run["properties"] = {"leftOut": left_out}
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _rule(name: str) -> dict[str, Any]:
    level, sentence = problems.RULES[name]
    words = "".join(word.capitalize() for word in name.split("-"))
    return {
        "id": name,
        "name": words,
        "shortDescription": {"text": sentence},
        "fullDescription": {"text": sentence},
        "help": {"text": f"{sentence} `peft-harness clauses ID` explains a clause."},
        "defaultConfiguration": {"level": level},
    }


def _result(problem: Problem, rules: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": problem.rule,
        "ruleIndex": rules.index(problem.rule),
        "level": problem.level,
        "message": {"text": _message(problem)},
        "partialFingerprints": {"problem/v1": problem.fingerprint},
        "properties": {
            "clauses": list(problem.clauses),
            "cases": problem.cases,
            "packages": list(problem.packages),
            "next": list(problem.next),
        },
    }
    if problem.place is not None:
        location = {
            "artifactLocation": {"uri": quote(problem.place.file), "uriBaseId": "%SRCROOT%"},
            "region": {"startLine": problem.place.line},
        }
        result["locations"] = [{"physicalLocation": location}]
    return result


def _message(problem: Problem) -> str:
    """Return a message in which nothing is a link or a placeholder: SARIF reads [text](address) and {0} in it."""
    words = problem.words.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
    return words.replace("{", "{{").replace("}", "}}")
