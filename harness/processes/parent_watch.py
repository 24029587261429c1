"""End a process as soon as the one that started it has ended, even if that one was killed."""

from __future__ import annotations

import os
import threading
import time

#: The environment variable by which a process tells one that it starts: end when I, whose process id this is, end.
OWNER = "PEFT_HARNESS_OWNER"


def end_with_owner() -> None:
    """If OWNER is set, watch that process from a thread, and end this one with status 2 once it is gone.

    The variable is removed, so that this process's own children do not inherit it.
    """
    owner = os.environ.pop(OWNER, "")
    if not owner:
        return

    def watch() -> None:
        while os.getppid() == int(owner):
            time.sleep(0.5)
        os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
