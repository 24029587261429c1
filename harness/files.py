"""Writing files so that they are complete or missing, and only where the user means."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness.errors import OutOfSpace, UsageError

#: Bytes that `check_writable` writes. A full disk has no room for one block of the usual size.
_TRIAL = 4096

#: A disk with fewer bytes free counts as full.
_FEW = 2**20

#: What libraries say instead of OSError if a disk is full: Rust's safetensors, torch's writer, libraries in C.
_FULL = re.compile(
    r"No space left on device|os error 28|Disk quota exceeded|PytorchStreamWriter failed writing"
    r"|inline_container\.cc.*unexpected pos"
)

#: What `out_of_space` says.
_SENTENCE = re.compile(r"no space left on .+; free some, or set TMPDIR to a directory on another disk")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, and make its directories. Readers see the old file or the whole new file, never a part.

    The text goes to a file beside it, which is then renamed. Processes and threads may write the same file at once. Raises
    OSError if it cannot be written; nothing is left beside it then.
    """
    if path.exists() and not path.is_file():
        # Renaming would put a file in the place of /dev/null.
        raise UsageError(f"{path}: {_kind(path)}; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        _write_new(partial, content.encode("utf-8") if isinstance(content, str) else content)
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None
        raise


def write_figure(path: Path, figure: Any) -> None:
    """Write a figure of matplotlib, in the format that the file's extension names."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.removeprefix("."), dpi=150)
    write_whole(path, buffer.getvalue())


class Attempts:
    """Writes of a file that a long command writes again and again. One that fails does not end the command.

    Usage:

        written = Attempts()
        for result in results:
            with written.attempt():
                write_whole(file, report)
        print(...)
        written.require_last()
    """

    def __init__(self) -> None:
        self._failed: OSError | None = None

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Catch the OSError of a write, until it is written again."""
        try:
            yield
            self._failed = None
        except OSError as error:
            self._failed = error

    def require_last(self) -> None:
        """Raise the OSError of the last write, if it failed."""
        if self._failed is not None:
            raise self._failed


def check_writable(option: str, path: str | Path) -> Path:
    """Find out before the work whether a file can be written after it. Return the path to write to.

    A file beside it is written and removed, and so are directories that are missing. The file itself is not touched.

    - option: the option that names the file, as the user typed it.
    - path: the file. If it is a link to a file, the link's target is returned, so that the link stays.

    Raises UsageError if it is a directory or a device, and if it cannot be written.
    """
    path = Path(path)
    try:
        file = _regular(option, path)
        with _directories(file.parent):
            if file.exists() and not file.stat().st_mode & 0o222:
                raise PermissionError(errno.EROFS, "it is read-only")
            with contextlib.suppress(FileNotFoundError):
                file.lstat()  # raises OSError for a name that is too long
            _try(file)
    except (OSError, ValueError) as error:  # a ValueError is a null byte, or a character that the locale does not have
        raise UsageError(
            f"{option} {path}: cannot be written ({reason(error)}); name a file in a directory that you can write to"
        ) from None
    return file


def check_writable_directory(
    option: str, path: str | Path, advice: str = "name a directory that you can write to"
) -> None:
    """Find out before the work whether files can be written into a directory, which may be missing.

    - option: the option that names the directory, as the user typed it.
    - advice: the end of the sentence.

    Raises UsageError if it is no directory, and if no file can be written in it. Nothing stays of the trial.
    """
    path = Path(path)
    try:
        with _directories(path):
            _try(path / "trial")
    except (OSError, ValueError) as error:
        raise UsageError(f"{option} {path}: cannot be written ({reason(error)}); {advice}") from None


def reason(error: BaseException) -> str:
    """Return in a few words why a file could not be read or written."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return words[0].lower() + words[1:]


def out_of_space(error: BaseException | None, places: Iterable[Path] = ()) -> str:
    """Return one sentence if a full disk is the cause of an error, "" if it is not.

    - places: directories that may be on it, besides the current one and the one for temporary files.
    """
    while error is not None:
        if isinstance(error, OutOfSpace):
            return str(error)
        is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if is_full or _FULL.search(str(error)):
            file = getattr(error, "filename", None)
            place = Path(os.fsdecode(file)).absolute().parent if isinstance(file, (str, bytes)) else _fullest(places)
            return _no_space(place)
        error = error.__cause__ or error.__context__
    return ""


def require_space(error: BaseException | None) -> None:
    """Raise OutOfSpace if a full disk is the cause of an error: whatever ended by it is not judged."""
    sentence = out_of_space(error)
    if sentence:
        raise OutOfSpace(sentence) from error


def require_space_in(words: str, places: Iterable[Path]) -> None:
    """Raise OutOfSpace if a full disk is the cause of what another process said, or could not say, before it ended.

    - words: its error. Upstream's words for a full disk are known, and so are those of this harness.
    - places: directories that it wrote to.
    """
    said = _SENTENCE.search(words)
    sentence = said[0] if said else out_of_space(RuntimeError(words), places)
    if not sentence and (full := next((place for place in places if _free(place) < _FEW), None)) is not None:
        sentence = _no_space(full)
    if sentence:
        raise OutOfSpace(sentence)


def inside(directory: Path, name: str, where: str) -> Path:
    """Return the path of a file that may be written or deleted because it lies in a directory.

    - directory: the directory that nothing may leave.
    - name: a path relative to it, from a file that somebody else may have written.
    - where: what messages call the source of `name`.

    Raises UsageError for an absolute path, for "..", and if a link leads out of the directory or the file is a link.
    """
    path = directory / name
    if leads_out(name) or path.is_symlink() or not path.resolve().is_relative_to(directory.resolve()):
        raise UsageError(f"{where}: {name!r} leads out of {directory.name}; name a file in it")
    return path


def leads_out(name: str) -> bool:
    """Return whether a path leads out of the directory that it should be relative to, whatever that holds."""
    return Path(name).is_absolute() or ".." in Path(name).parts


def _partial(path: Path) -> Path:
    """Return the file beside it that is renamed at the end. Its name is short, so that a long name does not get longer."""
    return path.with_name(f".{path.name[:32]}.{os.getpid()}-{threading.get_ident()}")


def _kind(path: Path) -> str:
    return "is a directory" if path.is_dir() else "is no regular file"


def _regular(option: str, path: Path) -> Path:
    """Return the file, or the target of the link, which is a regular file or missing. Raises UsageError, OSError."""
    file = path
    if path.is_symlink():
        try:
            file = path.resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
            raise UsageError(f"{option} {path}: is a link that leads nowhere; name a file") from None
    try:
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return file
    if not stat.S_ISREG(mode):
        raise UsageError(f"{option} {path}: {_kind(file)}; name a file")
    return file


@contextlib.contextmanager
def _directories(directory: Path) -> Iterator[None]:
    """Make a directory and its missing parents, and remove those again that were made."""
    missing = []
    while not directory.exists() and not directory.is_symlink():
        missing.append(directory)
        directory = directory.parent
    try:
        for each in reversed(missing):
            each.mkdir(exist_ok=True)
        yield
    finally:
        for each in missing:
            with contextlib.suppress(OSError):
                each.rmdir()


def _write_new(file: Path, content: bytes) -> None:
    """Make a file. Its name can be guessed, so a link of that name, which somebody else made, is not followed."""
    file.unlink(missing_ok=True)
    with file.open("xb") as stream:
        stream.write(content)


def _try(file: Path) -> None:
    """Write and remove a file beside it. Raises OSError."""
    partial = _partial(file)
    try:
        _write_new(partial, bytes(_TRIAL))
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _no_space(place: Path | str) -> str:
    return f"no space left on {place}; free some, or set TMPDIR to a directory on another disk"


def _free(place: Path) -> int:
    """Return the bytes that are free on the disk of a directory, which may be missing."""
    while not place.exists() and place != place.parent:
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def _fullest(places: Iterable[Path]) -> Path | str:
    """Return the directory without space. Since the error, the command may have deleted its temporary files."""
    fullest = min((Path(tempfile.gettempdir()), Path.cwd(), *places), key=_free)
    return fullest if _free(fullest) < _FEW else "a disk that is written to"
