"""Bad inputs to every command, as data, and what runs them."""

from tests.bad_inputs import files, newer, options, reports, specs
from tests.bad_inputs.row import Row

ROWS: list[Row] = [*specs.ROWS, *options.ROWS, *files.ROWS, *reports.ROWS, *newer.ROWS]
