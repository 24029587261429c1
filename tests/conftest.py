"""Tests of the harness run tests of suites/ under faults of upstream, so their marker is known here too."""


def pytest_configure(config):
    config.addinivalue_line("markers", "clause(id): the clause of the contract that a test of suites/ judges")
