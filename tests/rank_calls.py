"""Functions that the ranks of tests/test_ranks.py call. Ranks find them by name, so they are functions of a module."""

import ctypes
import logging
import os
import time
from datetime import timedelta
from pathlib import Path


def rank():
    return int(os.environ["RANK"])


def add_up(file):
    """Have rank 0 write the sum over ranks of 1 + rank."""
    import torch

    total = torch.tensor([1.0 + rank()])
    torch.distributed.all_reduce(total)
    if rank() == 0:
        Path(file).write_text(str(float(total)))


def warn():
    logging.getLogger("made-up").warning("said by the logger")


def wait_for_others():
    import torch

    torch.distributed.barrier()


def raise_on_one():
    if rank() == 1:
        raise ValueError("the second rank has had enough")
    wait_for_others()


def raise_on_all():
    raise ValueError("none of us wants to")


def raise_late_on_one():
    """Raise the same error in all ranks. Rank 1 raises it a second later, after it has used the store that rank 0 serves."""
    if rank():
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        time.sleep(1.0)
        port = int(os.environ["MASTER_PORT"])
        TCPStore("127.0.0.1", port, 2, is_master=False, timeout=timedelta(seconds=3)).add("met", 1)
    raise ValueError("none of us wants to")


def hang_on_one():
    if rank() == 1:
        sleep_here()
    wait_for_others()


def sleep_here():
    time.sleep(1000)


def die_on_one():
    if rank() == 1:
        ctypes.string_at(0)
    wait_for_others()


def note_process(directory):
    """Write this rank's process id to a file, and sleep."""
    Path(directory, f"{rank()}.pid").write_text(str(os.getpid()))
    time.sleep(1000)


def leave_a_child_behind(file):
    """Start a process that leads a process group of its own, as ninja's compilers do, and end before it."""
    import subprocess
    import sys

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
    Path(f"{file}-{rank()}").write_text(str(child.pid))
