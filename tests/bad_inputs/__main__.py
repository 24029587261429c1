"""Run every bad input and print a table of the answers: `python -m tests.bad_inputs [WORDS]`.

Each row gets a process of its own here, so that one that never ends or fills the memory harms no other.
WORDS: run only the rows whose name has them.
"""

import collections
import dataclasses
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.processes.imports import import_upstream
from tests.bad_inputs import ROWS, driver


def main() -> int:
    chosen = [row for row in ROWS if all(word in row.id for word in sys.argv[1:])]
    import_upstream()
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row in chosen:
        with tempfile.TemporaryDirectory() as directory:
            outcome = driver.run(dataclasses.replace(row, forked=True), Path(directory, "row"))
        faults = outcome.faults(row)
        count = counts[row.command]
        count["inputs"] += 1
        count["right"] += not faults
        for kind in ("traceback", "exit code", "sentences", "does not say", "takes", "changes"):
            count[kind] += any(kind in fault for fault in faults)
        if faults:
            last = (outcome.errors.strip() or outcome.output.strip()).splitlines()[-1:]
            print(f"{row.id}\n    {'; '.join(faults)}\n    {last}", flush=True)
    columns = ("inputs", "right", "traceback", "exit code", "sentences", "does not say", "takes", "changes")
    table = Table("command", *columns, box=None)
    for command, count in sorted(counts.items()):
        table.add_row(command, *(str(count[column]) for column in columns))
    Console().print(table)
    return int(any(count["right"] < count["inputs"] for count in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
