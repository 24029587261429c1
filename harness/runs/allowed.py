"""What a subject adds on purpose, to logs, metrics and checkpoints, is left out of the traces that laws judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from harness.trace import Trace

#: Glob over clause ids -> globs over names of keys and files.
Allowed = Mapping[str, Sequence[str]]


def names(allowed: Sequence[Allowed], clause: str) -> list[str]:
    """Return the names that are allowed for a clause. A test of several clauses has none: for it all of them are."""
    found = [
        one for each in allowed for glob, ones in each.items() if fnmatchcase(clause or glob, glob) for one in ones
    ]
    return list(dict.fromkeys(found))


def without(trace: Trace, globs: Sequence[str]) -> Trace:
    """Return a trace without some keys of its log and metrics, files of its checkpoints, and tensors that are not trained."""
    if not globs:
        return trace

    def kept(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if not any(fnmatchcase(key, glob) for glob in globs)}

    def checkpoint(one: Any) -> Any:
        log = one.state.get("log_history")
        state = one.state if log is None else {**one.state, "log_history": [kept(entry) for entry in log]}
        return dataclasses.replace(one, files=kept(one.files), tensors=kept(one.tensors), state=state)

    return dataclasses.replace(
        trace,
        base_before=kept(trace.base_before),
        base=kept(trace.base),
        log_history=[kept(entry) for entry in trace.log_history],
        output={key: kept(value) if key == "metrics" else value for key, value in trace.output.items()},
        evaluations=[dataclasses.replace(one, metrics=kept(one.metrics)) for one in trace.evaluations],
        checkpoints=[checkpoint(one) for one in trace.checkpoints],
    )
