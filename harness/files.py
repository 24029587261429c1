"""Writing files so that they are complete or missing, never half-written."""

import os
import threading
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file, and make its directories. Readers see the old file or the whole new file, never a part.

    The text goes to a file beside it, which is then renamed. Processes and threads may write the same file at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
