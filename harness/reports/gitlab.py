"""A report as GitLab's code-quality artefact, which a merge request shows at the line of the pin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from harness.reports import problems

#: Of the levels of `problems`: the severities of Code Climate, of which GitLab's format is a part.
_SEVERITIES = {problems.ERROR: "critical", problems.WARNING: "minor"}

#: GitLab asks for a path. This one stands where no requirements file is known.
NO_FILE = "(no requirements file)"


def write(report: Mapping[str, Any]) -> str:
    """Return the code-quality report: a JSON list with an object for each problem. Raises UsageError if it is no report."""
    found = problems.of(report)
    entries = {
        problem.fingerprint: {
            "description": problem.words,
            "check_name": f"peft-harness/{problem.rule}",
            "fingerprint": problem.fingerprint,
            "severity": _SEVERITIES[problem.level],
            "location": {
                "path": problem.place.file if problem.place else NO_FILE,
                "lines": {"begin": problem.place.line if problem.place else 1},
            },
        }
        for problem in found
    }
    return json.dumps(list(entries.values()), indent=1) + "\n"
