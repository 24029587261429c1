"""Writing files so that they are complete or missing, and only inside the directory that is meant."""

import os
import threading
from pathlib import Path

from harness.errors import UsageError


def write_whole(path: Path, text: str) -> None:
    """Write a file, and make its directories. Readers see the old file or the whole new file, never a part.

    The text goes to a file beside it, which is then renamed. Processes and threads may write the same file at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def inside(directory: Path, name: str, where: str) -> Path:
    """Return the path of a file that may be written or deleted because it lies in a directory.

    - directory: the directory that nothing may leave.
    - name: a path relative to it, from a file that somebody else may have written.
    - where: what messages call the source of `name`.

    Raises UsageError for an absolute path, for "..", and if a link leads out of the directory or the file is a link.
    """
    path = directory / name
    is_relative = not Path(name).is_absolute() and ".." not in Path(name).parts
    if not is_relative or path.is_symlink() or not path.resolve().is_relative_to(directory.resolve()):
        raise UsageError(f"{where}: {name!r} leads out of {directory.name}; name a file in it")
    return path
