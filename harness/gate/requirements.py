"""Read what a user gives as a stack: 'current', a requirements, project or lock file, or words such as 'peft==0.18.1'.

Each kind of file has a module in `harness.gate.formats`. `harness.gate.asked` gathers what they have.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from harness.errors import UsageError
from harness.gate import sources
from harness.gate.asked import CONTENT, Asked, name_of
from harness.gate.formats import conda, lists, pip_file, pipfile, project, uv_lock
from harness.gate.formats.common import NOTHING, Chosen, no_choice
from harness.reading import read_text, shown, shown_path

__all__ = ["BUILT", "CONTENT", "CURRENT", "Asked", "name_of", "names", "read"]

#: The word for the environment that runs the harness.
CURRENT = "current"

#: Never resolved: it has no wheel, and its setup script imports torch. The installed one is taken along (`taken_along`).
BUILT = "deepspeed"

#: Bytes of a file. A lock of 500 packages with all hashes has 2 MB.
_LIMIT = 8 * 2**20

#: What reads a file: reader(file, its text, what the user chose of it, what is gathered, what reads included files).
_Reader = Callable[[Path, str, Chosen, Asked, pip_file.Include], None]

#: File names, and what reads them.
_FORMATS: dict[str, _Reader] = {
    r"pyproject\.toml": project.read,
    r"uv\.lock": uv_lock.read,
    r"poetry\.lock": lists.read_poetry,
    r"pdm\.lock": lists.read_pdm,
    r"pylock(\..+)?\.toml": lists.read_pylock,
    r"Pipfile\.lock": pipfile.read_lock,
    r"Pipfile": pipfile.read,
    r"(?!conda-lock|.*\.lock).*\.ya?ml": conda.read,
}

#: File names of formats that are not read, and what to do.
_OTHERS = {
    r"conda-lock.*|.*\.conda|pixi\.(lock|toml)": (
        "make one: pip list --format=freeze > requirements.txt, in that environment"
    ),
    r"setup\.(py|cfg)": "name its folder, as ./FOLDER",
    r".*\.(json|py|ipynb|toml|csv|html|md|ya?ml)": "write one requirement a line, such as transformers==5.1.0",
}

#: Endings of words that are meant as files.
_ENDINGS = (".txt", ".lock", ".in", ".toml", ".yml", ".yaml", ".cfg")


def names(asked: str) -> list[str]:
    """Return the packages that requirements name, in their order."""
    return read(asked).names


def read(asked: str) -> Asked:
    """Read requirements from a file or from words. A word may also be a file, with extras and groups after its name.

    Raises UsageError if a file or a word cannot be read as requirements.
    """
    if not asked.strip():
        raise UsageError("no requirements given; name a file, 'current', or requirements such as 'transformers==5.1.0'")
    found = Asked()
    if _is_file(asked):
        _read_file(Path(asked), found)
        return found
    # "name @ URL" is one requirement, and so is "name[one, two]".
    words = re.sub(r"\s*,\s*(?=[^\[\]]*\])", ",", re.sub(r"\s+@\s+", "@", asked)).split()
    before = ""
    for word in (word.rstrip(",") for word in words):
        if before in ("-e", "--editable"):
            found.add(pip_file.as_path(word), Path.cwd(), f"requirements {shown(asked)}")
        elif word not in ("-e", "--editable"):
            _read_word(word, asked, found)
        before = word
    return found


def file_and_choice(word: str) -> tuple[str, Chosen]:
    """Split `FILE[extra,...]:group,...` into the file and what is chosen of it."""
    if _is_file(word):
        return word, NOTHING
    match = re.fullmatch(r"(.+?)(?:\[([\w.,\s-]*)\])?(?::([\w.,-]+))?", word, re.DOTALL)
    if match is None or not _is_file(match[1]):
        return word, NOTHING
    extras, groups = (tuple(filter(None, re.split(r"[,\s]+", match[part] or ""))) for part in (2, 3))
    return match[1], Chosen(extras, groups)


def _is_file(word: str) -> bool:
    """Return whether there is a file that may hold requirements: one that is no package and no folder."""
    return os.path.exists(word) and not os.path.isdir(word) and not word.lower().endswith(sources.ARCHIVES)


def _read_word(word: str, asked: str, found: Asked) -> None:
    file, chosen = file_and_choice(word)
    named, _, _ = word.partition("[")
    if _is_file(file):
        _read_file(Path(file), found, chosen)
    elif word == CURRENT:
        raise UsageError(f"requirements {asked!r}: 'current' stands alone; name releases instead")
    elif named.partition(":")[0].endswith(_ENDINGS) and "://" not in word:
        raise UsageError(f"{shown_path(named)}: no such requirements file")
    elif word.startswith("-"):
        raise UsageError(f"requirements {shown(asked)}: {word}: write options into a requirements file, and name that")
    else:
        where = f"requirements {shown(asked)}"
        found.add(word, Path.cwd(), where, "; write requirements like 'transformers==5.1.0 peft==0.18.1'")


def _read_file(
    file: Path, found: Asked, chosen: Chosen = NOTHING, within: tuple[Path, ...] = (), constraints: bool = False
) -> None:
    """Add what a file names.

    - chosen: the extras and groups that the user named after it.
    - within: the files that include this one.
    - constraints: whether its lines only limit versions.
    """
    for pattern, advice in _OTHERS.items():
        if re.fullmatch(pattern, file.name) and not _reader(file):
            raise UsageError(f"{shown_path(file)}: is no requirements file; {advice}")
    real = Path(os.path.realpath(file))
    if real in within:
        circle = " -> ".join(shown_path(path.name) for path in (*within[within.index(real) :], real))
        raise UsageError(f"{shown_path(file)}: includes itself ({circle}); remove one of these lines")
    if (real, constraints) in found.files and not chosen:
        return  # asking twice for the same changes nothing
    text = read_text(file, _LIMIT)
    if "\0" in text:
        raise UsageError(f"{shown_path(file)}: not a text file (it has NUL bytes)")
    found.files.append((real, constraints))
    include = lambda path, limits: _read_file(path, found, NOTHING, (*within, real), limits)  # noqa: E731
    reader = _reader(file)
    if reader is None:
        no_choice(file, chosen)
        pip_file.read(file, text, found, include, constraints)
    elif constraints:
        raise UsageError(
            f"{shown_path(file)}: is no list of constraints; write one requirement a line into a .txt file"
        )
    else:
        reader(file, text, chosen, found, include)


def _reader(file: Path) -> _Reader | None:
    return next((reader for pattern, reader in _FORMATS.items() if re.fullmatch(pattern, file.name)), None)
