"""Cells that sleep instead of judging, and a campaign of them, to be killed.

python -m tests.sleeping_cells TASK RESULT                     a cell
python -m tests.sleeping_cells campaign DIRECTORY ON WORKERS STACKS SECONDS
"""

import json
import os
import sys
import time
from pathlib import Path
from unittest.mock import patch

from harness.gate import stored
from harness.map import campaign, cell, clause_sources
from harness.map.matrix_file import Matrix
from tests.made_up_tables import result


def judge(asked, answer):
    """Sleep, and write a made-up result. The log says of each start whether the result was there already."""
    task = json.loads(Path(asked).read_text())
    folder = Path(task["directory"])

    def log(word):
        with (folder / "log").open("a") as stream:
            stream.write(f"{word} {task['id']} {os.getpid()}\n")

    log("again" if (folder / "results" / f"{task['id']}.json").exists() else "start")
    time.sleep(float((folder / "seconds").read_text()))
    log("end")
    stack = task["stack"]
    body = result(
        stack["transformers"], stack["peft"], stack["accelerate"], fails=["ACC-01"] * ("3" in stack["transformers"])
    )
    body |= {"requirements": task["requirements"], "machine": cell.machine(), "python": sys.version.split()[0]}
    Path(answer).write_text(stored.line(body | {"keys": task["sources"]}))


def run(directory, on, workers, stacks, seconds):
    """Judge made-up stacks. Prints how many were judged now."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "seconds").write_text(seconds)
    releases = {
        "transformers": tuple(f"5.{minor}.0" for minor in range(stacks)), "peft": ("0.18.1",), "accelerate": ("1.13.0",),
    }  # fmt: skip
    matrix = Matrix("made up", releases, ("all",), stacks, ("ACC-01",))
    with patch.object(clause_sources, "sources", lambda clause, tests: "1"):
        at = campaign.Campaign(matrix, directory, module="tests.sleeping_cells")
    print(at.go(on, workers, stacks, lambda done, total, text: print(f"{done} of {total}, {text}", flush=True)))


if __name__ == "__main__":
    if sys.argv[1] == "campaign":
        run(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
    else:
        judge(*sys.argv[1:])
