"""Entry point of pytest: load the plugin when `pytest --pyargs harness.suites` is run.

pytest reads the conftest.py of a folder early enough for its options, but not that of a package named by --pyargs. Any
other session in this environment is left alone, since options such as --device could clash with those of its plugins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    if any(arg == "harness.suites" or arg.startswith(("harness.suites.", "harness.suites::")) for arg in args):
        early_config.pluginmanager.import_plugin("harness.session.plugin")
