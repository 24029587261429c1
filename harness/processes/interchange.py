"""Parsl's interchange, which ends as soon as the command that started it has ended, even if that one was killed.

python -m harness.processes.interchange PROCESS      PROCESS is the command's id
"""

from __future__ import annotations

import os
import runpy
import sys

from harness.processes.parent_watch import OWNER, end_with_owner


def main(owner: str) -> None:
    """Run the interchange until the process `owner`, which started this one, has ended."""
    os.environ[OWNER] = owner
    end_with_owner()
    sys.argv[1:] = []
    runpy.run_module("parsl.executors.high_throughput.interchange", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])
