"""Arguments that a user gives from Python: each is what it must be, or there is one sentence that says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.errors import UsageError
from harness.user_code import quoted


def mapping(where: str, value: Any, texts: bool = False) -> dict[str, Any]:
    """Return a dict whose keys are texts; {} for None. UsageError for anything else.

    - where: the argument, such as "TrainerSubject: defaults".
    - texts: whether the values must be texts, too.
    """
    __tracebackhide__ = True
    if value is None:
        return {}
    right = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if not right or (texts and not all(isinstance(one, str) for one in value.values())):
        raise UsageError(f"{where} is {quoted(value)}; expected a dict of texts{'' if texts else ' to values'}")
    return dict(value)


def lists(where: str, value: Any) -> dict[str, list[str]]:
    """Return a dict of lists of texts; {} for None. UsageError for anything else, such as a text in place of a list."""
    __tracebackhide__ = True
    found = mapping(where, value)
    for key, ones in found.items():
        if isinstance(ones, str) or not isinstance(ones, Sequence) or not all(isinstance(one, str) for one in ones):
            raise UsageError(f"{where}[{key!r}] is {quoted(ones)}; expected a list of names")
    return {key: list(ones) for key, ones in found.items()}


def function(where: str, value: Any) -> Callable[..., Any] | None:
    """Return what can be called, or None. UsageError for anything else."""
    __tracebackhide__ = True
    if value is not None and not callable(value):
        raise UsageError(f"{where} is {quoted(value)}, which cannot be called")
    found: Callable[..., Any] | None = value
    return found


def count(where: str, value: Any) -> int:
    """Return a whole number from 1 on. UsageError for anything else."""
    __tracebackhide__ = True
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{where} is {quoted(value)}; expected a whole number from 1 on")
    return value


def name(where: str, value: Any) -> str:
    """Return a name that reports and directories of runs can have. UsageError for anything else."""
    __tracebackhide__ = True
    if not (isinstance(value, str) and 0 < len(value) <= MOST and value.isprintable() and not set("/\\") & set(value)):
        raise UsageError(
            f"{where} is {quoted(value)}; expected a printable text of 1 to {MOST} characters without slashes"
        )
    return value


#: Characters of a subject's name.
MOST = 100
