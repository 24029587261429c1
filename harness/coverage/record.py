"""A pytest plugin that records which branches of upstream run, in this process and in each worker of xdist.

`peft-harness coverage` loads it with -p. PEFT_HARNESS_COVERAGE_DATA names the data files, one per process.
"""

from __future__ import annotations

import os

import coverage
import pytest
from coverage import Coverage

from harness.coverage.table import paths

VARIABLE = "PEFT_HARNESS_COVERAGE_DATA"


def recorder(data_file: str) -> Coverage:
    """Start branch coverage of the files in the table, and return it. Raises what coverage raises if it cannot start."""
    files = [str(path) for path in paths().values()]
    cover = Coverage(data_file=data_file, data_suffix=True, branch=True, include=files, config_file=False)
    # Ranks are forked and end by os._exit. coverage before 7.11 loses what they reached.
    if tuple(map(int, coverage.version_info[:2])) >= (7, 11):
        cover.set_option("run:patch", ["fork", "_exit"])
    cover.start()
    return cover


_COVER = pytest.StashKey[Coverage]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_COVER] = recorder(os.environ[VARIABLE])


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    # It is missing if another plugin refused the options first.
    cover = config.stash.get(_COVER, None)
    if cover is not None:
        cover.stop()
        cover.save()
