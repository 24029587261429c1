"""The cache directory of a command that makes environments: it is made, or does without."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from harness.errors import UsageError
from harness.files import check_writable_directory, reason
from harness.paths import CACHE, cache_directory, mark_cache


def use_cache() -> None:
    """Make the cache directory. If the usual one cannot be written, take one in TMPDIR for this command alone, and say so.

    Raises UsageError if the user has chosen one that cannot be written.
    """
    if os.environ.get(CACHE):
        check_writable_directory(CACHE, cache_directory())
        _make(cache_directory())
        return
    try:
        check_writable_directory("the cache", cache_directory(), f"set {CACHE} to cache what the command makes")
        _make(cache_directory())
    except UsageError as error:
        os.environ[CACHE] = tempfile.mkdtemp(prefix="peft-harness-cache-")
        if "UV_CACHE_DIR" not in os.environ and not _uv_has_a_cache():
            os.environ["UV_CACHE_DIR"] = os.path.join(os.environ[CACHE], "uv")
        print(f"peft-harness: {error}", file=sys.stderr)


def _make(directory: Path) -> None:
    try:
        mark_cache(directory)
    except OSError as error:
        raise UsageError(f"{directory}: the cache cannot be made ({reason(error)}); set {CACHE}") from None


def _uv_has_a_cache() -> bool:
    """Return whether uv can write its own cache. It ends with an error where it cannot."""
    try:
        usual = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        check_writable_directory("uv", Path(usual, "uv"))
    except (UsageError, RuntimeError):
        return False
    return True
