"""Whether a session has judged all that it was asked for. Only then may it end with 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from harness.session import report
from harness.verdict import Case
from harness.words import counted

#: Node ids that a sentence names.
_NAMED = 3


class Complete:
    """Counts tests: those that were collected and not deselected, and those whose cases have a verdict.

    It is a pytest plugin. Under xdist it counts what the workers have collected.

    - ended: node ids of tests that were judged before the session, according to its journal.
    """

    def __init__(self, ended: set[str]):
        self._asked: dict[str, None] = {}
        self._judged = set(ended)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out the tests that a journal has. This comes last: --keyword and the like say what is asked for."""
        known = [item for item in items if item.nodeid in self._judged]
        if known:
            self._asked.update(dict.fromkeys(item.nodeid for item in known))
            items[:] = [item for item in items if item.nodeid not in self._judged]
            config.hook.pytest_deselected(items=known)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if not session.config.option.collectonly:
            self._asked.update(dict.fromkeys(item.nodeid for item in session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        self._asked.update(dict.fromkeys(ids))

    def judged(self, nodeid: str) -> None:
        """Note that the cases of a test have a verdict."""
        self._judged.add(nodeid)

    @property
    def asked(self) -> bool:
        """Whether any test was asked for."""
        return bool(self._asked)

    @property
    def missing(self) -> list[str]:
        """The node ids of tests that were asked for and not judged."""
        return [nodeid for nodeid in self._asked if nodeid not in self._judged]

    def sentence(self) -> str:
        """Say what is missing; "" if nothing is."""
        missing = self.missing
        named = ", ".join(nodeid.rpartition("suites/")[2] for nodeid in missing[:_NAMED])
        more = ", ..." if len(missing) > _NAMED else ""
        what = counted(len(self._asked), "test")
        return f"not judged: {len(missing)} of {what} that this run was asked for: {named}{more}" if missing else ""


def exit_code(complete: Complete, cases: list[Case], named: bool, status: int) -> int:
    """Return the exit code of a session.

    - cases: those judged so far.
    - named: whether the user named the clauses.
    - status: pytest's exit status. pytest.exit may have set any.

    A clause that fails is 1. Otherwise it is 2 if something is missing, if a case could not be judged because of the
    subject, if a run of --spec is refused, or if pytest reports a failure that belongs to no case, such as an error in a
    fixture's teardown.
    """
    if status not in (0, 1, 5):
        return status
    if not cases or (status == 5 and not complete.asked):
        return 5 if status == 5 else 2  # pytest has 1 for a test file that cannot be imported
    code = report.exit_code(cases, named)
    if code == 1:
        return 1
    if complete.missing or any(case.misused or case.refused for case in cases):
        return 2
    # pytest counts an undecided case as failed, too, and has 5 if the journal had all cases.
    return 2 if status == 1 and code == 0 else code


def facts(complete: Complete, status: int) -> dict[str, Any]:
    """Return what the JSON report says: whether all was judged that was asked for, and how many tests were not.

    - status: pytest's exit status; 0, 1 and 5 are those of a session that was not interrupted.
    """
    return {"complete": not complete.missing and status in (0, 1, 5), "not_judged": len(complete.missing)}
