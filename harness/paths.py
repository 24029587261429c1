"""Paths of the harness's own folders, and of its cache."""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from harness.errors import UsageError

#: The installed package `harness`.
PACKAGE = Path(__file__).resolve().parent
#: The folder that holds suites/ and fixtures/: the package itself in a wheel, its parent in a checkout.
ROOT = PACKAGE if (PACKAGE / "suites").is_dir() else PACKAGE.parent
SUITES = ROOT / "suites"
FIXTURES = ROOT / "fixtures"

#: Options of pytest with which commands run the suites: with the harness's settings rather than those of the user's
#: repository, and with test ids that begin with "suites/", in a wheel too.
OUR_SETTINGS = ("-c", str(PACKAGE / "session" / "suites.ini"), "--rootdir", str(ROOT))

#: Options of an interpreter that runs a module (python -m): the current directory is not the first on sys.path, where a
#: folder of the user's would hide an installed package of the same name. Python 3.10 has no such option.
SAFE_PATH = ("-P",) if sys.version_info >= (3, 11) else ()

#: The environment variable that names the directory of the user's own modules, if it is not the current one.
USER_MODULES = "PEFT_HARNESS_USER_MODULES"


#: The environment variable that names the cache directory.
CACHE = "PEFT_HARNESS_CACHE"

#: The file by which backups and other programs know a cache (bford.info/cachedir), and by which the harness knows its own.
TAG = "CACHEDIR.TAG"
_TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# peft-harness keeps here what it can make again.\n"


def search_user_modules() -> None:
    """Let modules of the user's directory be imported: subjects (module:factory) and --preload modules.

    It comes last on sys.path, so that a folder named like an installed package is not taken for that package.
    """
    directory = os.environ.get(USER_MODULES) or os.getcwd()
    if directory not in sys.path and not (directory == os.getcwd() and "" in sys.path):
        sys.path.append(directory)


def cache_directory() -> Path:
    """Return the directory for files that are slow to make and safe to delete.

    It is $PEFT_HARNESS_CACHE, or ~/.cache/peft-harness if that is not set. Raises UsageError if it is not set and the user
    has no home directory.
    """
    chosen = os.environ.get(CACHE)
    try:
        return Path(chosen).expanduser().absolute() if chosen else _usual_cache()
    except RuntimeError:
        raise UsageError(f"there is no home directory for cached files; set HOME, or {CACHE}, to a directory") from None


def mark_cache(directory: Path) -> None:
    """Make a cache directory and mark it as the harness's, if it is missing or empty. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    if not any(directory.iterdir()):
        (directory / TAG).write_text(_TAG_TEXT, encoding="utf-8")


def is_cache(directory: Path) -> bool:
    """Return whether a directory is the harness's cache, in which it may delete.

    It is if it has the mark. The usual place needs none: earlier releases did not mark it.
    """
    with contextlib.suppress(OSError), (directory / TAG).open("rb") as file:
        if file.read(len(_TAG_TEXT)) == _TAG_TEXT.encode():
            return True
    with contextlib.suppress(RuntimeError):  # there is no home directory
        return directory == _usual_cache()
    return False


def _usual_cache() -> Path:
    return Path.home() / ".cache" / "peft-harness"


def keeping_bytecode(variables: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables for a child process that writes its bytecode.

    Containers often set PYTHONDONTWRITEBYTECODE. Each process would then compile upstream again, which takes 12 s. If it
    is set, it is dropped and the bytecode goes into the cache.
    """
    changed = dict(variables)
    if changed.get("PYTHONDONTWRITEBYTECODE"):
        with contextlib.suppress(UsageError):  # without a cache, nothing changes
            changed.setdefault("PYTHONPYCACHEPREFIX", str(cache_directory() / "bytecode"))
            del changed["PYTHONDONTWRITEBYTECODE"]
    return changed
