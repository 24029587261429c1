"""`pytest suites/`: the clauses of harness/contract/, judged. The plugin has the options and fixtures."""

pytest_plugins = ["harness.session.plugin"]
