"""The cache directory of a command that makes environments: it is made, or does without."""

from __future__ import annotations

import os
import sys
import tempfile

from harness.errors import UsageError
from harness.files import check_writable_directory, reason
from harness.paths import CACHE, cache_directory, mark_cache


def use_cache() -> None:
    """Make the cache directory. If the usual one cannot be written, take one in TMPDIR for this command alone, and say so.

    Raises UsageError if the user has chosen one that cannot be written.
    """
    chosen = os.environ.get(CACHE)
    try:
        directory = cache_directory()
        check_writable_directory(CACHE, directory)
        mark_cache(directory)
    except (OSError, UsageError) as error:
        words = reason(error) if isinstance(error, OSError) else str(error)
        if chosen:
            raise UsageError(words) from None
        os.environ[CACHE] = tempfile.mkdtemp(prefix="peft-harness-cache-")
        print(f"peft-harness: {words}; nothing is cached", file=sys.stderr)
