"""Bad inputs to every command, as data, and what runs them."""

from tests.bad_inputs import directories, files, newer, options, reports, specs
from tests.bad_inputs.row import Row

#: Rows of the newer commands. All of them take half a minute, so each eighth runs in CI; -m slow runs the others.
NEWER: list[Row] = [*newer.ROWS, *directories.ROWS]
SLOW = {row.id for number, row in enumerate(NEWER) if number % 8}

ROWS: list[Row] = [*specs.ROWS, *options.ROWS, *files.ROWS, *reports.ROWS, *NEWER]
