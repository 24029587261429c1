"""Entry point of pytest: what the harness adds to anybody's session.

- `pytest --pyargs harness.suites` loads the plugin. pytest reads the conftest.py of a folder early enough for its
  options, but not that of a package named by --pyargs. Any other session is left without them: options such as --device
  could clash with those of its plugins.
- A session in which `harness.conformance` has judged a case gets its summary, and the exit code 2 if a subject could not be
  trained. Under xdist the workers judge, and this is the process that prints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

#: The property of a test's report that holds a case of `harness.session.conformance`, as JSON.
PROPERTY = "peft_harness_conformance"


def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    if any(arg == "harness.suites" or arg.startswith(("harness.suites.", "harness.suites::")) for arg in args):
        early_config.pluginmanager.import_plugin("harness.session.plugin")


def pytest_configure(config: pytest.Config) -> None:
    # With --strict-markers the tests of suites/, which conformance() imports, could not name their clauses.
    config.addinivalue_line("markers", "clause(id): the clause of peft-harness's contract that a test judges")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Judged(), "peft-harness-conformance")


class _Judged:
    """Collects the cases of `harness.conformance`. A session without any is left alone."""

    def __init__(self) -> None:
        self.cases: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.cases += [str(value) for name, value in report.user_properties if name == PROPERTY]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if any('"misused": true' in case for case in self.cases) and session.exitstatus in (0, 1):
            session.exitstatus = 2

    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        if self.cases:
            from harness.session import conformance_summary

            conformance_summary.show(terminalreporter, self.cases, verbose=config.option.verbose > 0)
