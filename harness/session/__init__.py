"""One pytest session of suites/: options, fixtures, verdicts, journal and report."""
