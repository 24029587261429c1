"""`pytest suites/`: judge the clauses of harness/contract/.

The plugin has the options. All fixtures that tests of suites/ use are in one file, harness/session/pytest_fixtures.py.
One RunSpec goes this way, here for suites/test_acc.py:

1. `@over(...)` or `@cases(...)` (harness/runs/scenarios.py) gives the test a RunSpec for each scenario.
2. The fixture `train`, or `trace`, which calls it, passes the spec to `Runs.train` (harness/runs/cache.py).
3. If the spec was not trained yet, `train` (harness/processes/launch.py) lets the subject train it, in as many processes
   as it names, and returns a Trace.
4. A law (harness/laws/) returns a Verdict on the trace. The fixture `judge` records it.
5. When the test has ended, `decide` (harness/session/decide.py) sets the case's verdict from what was recorded.
6. harness/session/report.py writes the report; harness/session/terminal.py prints the summary.
"""

import atexit
from collections.abc import Generator
from contextlib import ExitStack
from typing import Any

import pytest

from harness.processes import interrupts

pytest_plugins = ["harness.session.plugin"]

# To import the plugin takes seconds. Until pytest answers signals itself, they would end it in a traceback.
_starting = ExitStack()
_starting.enter_context(interrupts.ending_at(*interrupts.ALL))
atexit.register(_starting.close)  # for a session that ends before it begins


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main() -> Generator[None, Any, Any]:
    _starting.close()
    return (yield)
