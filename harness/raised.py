"""Where an exception was raised, as data: the upstream package, file and function, and how the call came there."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

#: The packages that are judged. An error belongs to the innermost of their functions that it passed.
UPSTREAM = ("transformers", "peft", "accelerate", "bitsandbytes", "deepspeed")

#: Packages that upstream calls, for errors that passed no function of upstream.
_BELOW = ("torch", "safetensors", "huggingface_hub", "tokenizers", "numpy")

#: Functions of the call's path that are recorded, the innermost.
_MOST_CALLS = 8

#: Characters of a message that are recorded.
_MOST_WORDS = 1000

_FRAME = re.compile(r'File "([^"]+)", line (\d+),? in (\S+)')


def where_raised(error: BaseException) -> dict[str, Any]:
    """Return what an exception says and where it was raised.

    - "kind", "message": the exception's type and words.
    - "package", "file", "function", "line": the place, if a function of upstream is in its traceback. "file" begins with the
      package, such as "peft/tuners/tuners_utils.py".
    - "calls": the upstream functions on the way, outermost first, as "peft/mapping.py:get_peft_model".
    """
    message = str(error).strip()[:_MOST_WORDS]
    frames = [(frame.filename, frame.lineno or 0, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    return {"kind": type(error).__name__, "message": message, **place(frames)}


def place_in(text: str) -> dict[str, Any]:
    """Return the place that a printed stack shows, such as that of a hung rank. The keys are as in `where_raised`.

    In a stack of `faulthandler` the innermost call is the first, in a traceback the last.
    """
    frames = [(file, int(line), function) for file, line, function in _FRAME.findall(text)]
    return place(frames if "most recent call last" in text else frames[::-1])


def place(frames: Iterable[tuple[str, int, str]]) -> dict[str, Any]:
    """Return the place of an error. frames: (file, line, function), outermost first."""
    inside = [(*found, line, function) for file, line, function in frames if (found := _in_package(file))]
    calls = [call for call in inside if call[0] in UPSTREAM]
    if not calls:
        calls = inside
    if not calls:
        return {}
    package, file, line, function = calls[-1]
    names = list(dict.fromkeys(f"{call[1]}:{call[3]}" for call in calls))
    return {"package": package, "file": file, "function": function, "line": line, "calls": names[-_MOST_CALLS:]}


def _in_package(file: str) -> tuple[str, str] | None:
    """Return (package, file from the package on) if a file is one of an installed package that is judged."""
    parts = PurePath(file.replace("\\", "/")).parts
    installed = max((i for i, part in enumerate(parts) if part in ("site-packages", "dist-packages")), default=-1)
    start = installed + 1
    if installed < 0:
        # A checkout that was installed with -e: src/transformers/trainer.py.
        start = next((i for i, part in enumerate(parts) if part in UPSTREAM and "harness" not in parts), len(parts))
    if start >= len(parts) - 1 or parts[start] not in (*UPSTREAM, *_BELOW):
        return None
    return parts[start], "/".join(parts[start:])


#: Exceptions with which upstream says that it does not do something.
_REFUSALS = (ValueError, NotImplementedError, TypeError)


def refuses(error: BaseException) -> bool:
    """Return whether upstream refuses something in words by this error.

    A refusal is an exception that upstream raises on purpose: the line that raised it is a `raise` in upstream's own code.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    inside = any(f"/{package}/" in last.filename for package in UPSTREAM)
    raises = linecache.getline(last.filename, last.lineno or 0).strip().startswith("raise ")
    return isinstance(error, _REFUSALS) and inside and raises
