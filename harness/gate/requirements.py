"""Read what a user gives as a stack: 'current', a requirements or lock file, or words such as 'peft==0.18.1'."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from harness.errors import UsageError

#: The word for the environment that runs the harness.
CURRENT = "current"

#: Never installed. It is built against the torch that is already there, so each environment would compile its extensions.
LEFT_OUT = "deepspeed"


def names(asked: str) -> list[str]:
    """Return the packages that requirements name, in their order."""
    return [name for line in lines(asked) if (name := name_of(line))]


def lines(asked: str) -> list[str]:
    """Return the requirements, one a line, from a file or from words. A word may also be a file.

    Raises UsageError if a file or a word cannot be read as requirements.
    """
    if not asked:
        raise UsageError("no requirements given; name a file, 'current', or requirements such as 'transformers==5.1.0'")
    file = Path(asked)
    if file.is_file():
        return _read(file)
    found: list[str] = []
    for word in (word.rstrip(",") for word in asked.split()):
        if Path(word).is_file():
            found += _read(Path(word))
            continue
        if word.endswith((".txt", ".lock", ".in")):
            raise UsageError(f"{word}: no such requirements file")
        try:
            Requirement(word)
        except InvalidRequirement as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"requirements {asked!r}: {word!r} is not a requirement ({reason}); "
                "write requirements like 'transformers==5.1.0 peft==0.18.1'"
            ) from None
        found.append(word)
    return found


def _read(file: Path) -> list[str]:
    """Return the lines of a requirements file. Included files are read in, continued lines are joined."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read as a requirements file ({error})") from None
    found: list[str] = []
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        included = re.match(r"(?:-r|--requirement)[ =]+(.+)$", line)
        if included:
            found += _read(file.parent / included[1].strip())
        elif line:
            found.append(line)
    return found


def name_of(line: str) -> str | None:
    """Return the package that a requirements line names. None for an option or a path."""
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
    return canonicalize_name(found[0]) if found else None
