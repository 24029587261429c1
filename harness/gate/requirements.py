"""Read what a user gives as a stack: 'current', a requirements or lock file, or words such as 'peft==0.18.1'."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from harness.errors import UsageError
from harness.gate import sources
from harness.gate.sources import Source
from harness.reading import read_text, shown, shown_path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: The word for the environment that runs the harness.
CURRENT = "current"

#: Never resolved: it has no wheel, and its setup script imports torch. The installed one is taken along (`taken_along`).
BUILT = "deepspeed"

#: Bytes of a requirements file. A lock of 500 packages with all hashes has 2 MB.
_LIMIT = 4 * 2**20

#: Requirements, and characters of one of them. A stack has some 100, and the longest line of a lock has 60 hashes.
_MOST, _LONGEST = 3000, 2**16

#: The comment with which a lock remembers what a folder held.
CONTENT = "content sha256:"

#: File names of other formats, and how a requirements file is made from them.
_FORMATS = {
    r"uv\.lock": "uv export --format requirements-txt > requirements.txt",
    r"poetry\.lock": "poetry export > requirements.txt",
    r"pdm\.lock": "pdm export > requirements.txt",
    r"Pipfile(\.lock)?": "pipenv requirements > requirements.txt",
    r"pylock.*\.toml": "uv pip compile --format requirements.txt pylock.toml",
    r".*\.(ya?ml|conda)|conda-lock.*|pixi\.(lock|toml)": "pip list --format=freeze > requirements.txt, in that environment",
    r"setup\.(py|cfg)": "name its folder, as ./FOLDER",
    r".*\.(json|py|ipynb|toml|csv|html|md)": "write one requirement a line, such as transformers==5.1.0",
}

#: Options of a line that uv is given as they are. {option: whether its value is a path or an address}.
_OPTIONS = {
    "--index-url": True,
    "--extra-index-url": True,
    "--find-links": True,
    "--no-index": False,
    "--only-binary": False,
}
_SHORT = {"-r": "--requirement", "-c": "--constraint", "-e": "--editable", "-i": "--index-url", "-f": "--find-links"}

#: Options that change nothing here: wheels are preferred and hashes are checked anyway.
_WITHOUT_EFFECT = ("--prefer-binary", "--require-hashes")


@dataclass
class Asked:
    """What the requirements ask for.

    - releases: requirements that name a release, such as "peft>=0.18", without those whose marker does not apply.
    - sources: packages from files, folders and addresses.
    - constraints: requirements that only limit a version.
    - options: lines for uv, such as "--index-url https://...".
    - build: packages that may be built from source (--no-binary).
    - hashes: package -> the hashes of which its files must have one.
    - files: the files that were read, and whether as constraints.
    - variables: names of environment variables that lines refer to as ${NAME}; uv puts them in.
    """

    releases: list[str] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    build: list[str] = field(default_factory=list)
    hashes: dict[str, set[str]] = field(default_factory=dict)
    files: list[tuple[Path, bool]] = field(default_factory=list)
    variables: set[str] = field(default_factory=set)

    @property
    def names(self) -> list[str]:
        """The packages that are asked for, in their order."""
        found = [*(name for line in self.releases if (name := name_of(line))), *(made.name for made in self.sources)]
        return list(dict.fromkeys(found))


def names(asked: str) -> list[str]:
    """Return the packages that requirements name, in their order."""
    return read(asked).names


def read(asked: str) -> Asked:
    """Read requirements from a file or from words. A word may also be a file.

    Raises UsageError if a file or a word cannot be read as requirements.
    """
    if not asked.strip():
        raise UsageError("no requirements given; name a file, 'current', or requirements such as 'transformers==5.1.0'")
    found = Asked()
    if _is_file(asked):
        _read_file(Path(asked), found, ())
        return found
    # "name @ URL" is one requirement.
    words = re.sub(r"\s+@\s+", "@", asked).split()
    before = ""
    for word in (word.rstrip(",") for word in words):
        if before in ("-e", "--editable"):
            _add_requirement(_as_path(word), Path.cwd(), f"requirements {shown(asked)}", found)
        elif word not in ("-e", "--editable"):
            _read_word(word, asked, found)
        before = word
    return found


def _as_path(word: str) -> str:
    """Return the value of --editable as a requirement: it may be the bare name of a folder."""
    return word if sources.is_source(word) or "@" in word else f"./{word}"


def _is_file(word: str) -> bool:
    """Return whether there is a file that may hold requirements: one that is no package and no folder."""
    return os.path.exists(word) and not os.path.isdir(word) and not word.lower().endswith(sources.ARCHIVES)


def _read_word(word: str, asked: str, found: Asked) -> None:
    if _is_file(word):
        _read_file(Path(word), found, ())
    elif word == CURRENT:
        raise UsageError(f"requirements {asked!r}: 'current' stands alone; name releases instead")
    elif word.endswith((".txt", ".lock", ".in", ".toml", ".yml", ".yaml", ".cfg")):
        raise UsageError(f"{shown_path(word)}: no such requirements file")
    elif word.startswith("-"):
        raise UsageError(f"requirements {shown(asked)}: {word}: write options into a requirements file, and name that")
    else:
        where = f"requirements {shown(asked)}"
        advice = "; write requirements like 'transformers==5.1.0 peft==0.18.1'"
        _add_requirement(word, Path.cwd(), where, found, advice)


# ---- files ----


def _read_file(file: Path, found: Asked, within: tuple[Path, ...], constraints: bool = False) -> None:
    """Add the lines of a requirements file, and of those that it includes.

    - within: the files that include this one.
    - constraints: whether its lines only limit versions.
    """
    for pattern, advice in _FORMATS.items():
        if re.fullmatch(pattern, file.name) and file.name != "pyproject.toml":
            raise UsageError(f"{shown_path(file)}: is no requirements file; make one: {advice}")
    real = Path(os.path.realpath(file))
    if real in within:
        circle = " -> ".join(shown_path(path.name) for path in (*within[within.index(real) :], real))
        raise UsageError(f"{shown_path(file)}: includes itself ({circle}); remove one of these lines")
    if (real, constraints) in found.files:
        return  # asking twice for the same changes nothing
    text = read_text(file, _LIMIT)
    if "\0" in text:
        raise UsageError(f"{shown_path(file)}: not a text file (it has NUL bytes)")
    found.files.append((real, constraints))
    if file.name == "pyproject.toml":
        text = _dependencies(file, text)
    for number, line in _lines(text):
        _read_line(line, file, number, found, (*within, real), constraints)


def _lines(text: str) -> list[tuple[int, str]]:
    """Return (number, line) for each line that is not blank, with continued lines joined."""
    lines: list[tuple[int, str]] = []
    joined, first = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        first = first if joined else number
        # A comment ends a line that is continued, as it does for pip.
        comment = re.search(r"(^|\s)#", line)
        if line.endswith("\\") and not comment:
            joined += line[:-1] + " "
            continue
        lines.append((first, (joined + line).strip()))
        joined = ""
    return [(number, line) for number, line in [*lines, (first, joined.strip())] if line]


def _read_line(line: str, file: Path, number: int, found: Asked, within: tuple[Path, ...], constraints: bool) -> None:
    where = f"{shown_path(file)}, line {number}"
    comment = re.search(r"(^|\s)#(.*)$", line)
    remembered = re.search(re.escape(CONTENT) + r"([0-9a-f]{64})", comment[2]) if comment else None
    line = line[: comment.start()].strip() if comment else line
    if not line:
        return
    if not line.isprintable():
        raise UsageError(f"{where}: has characters that cannot be printed ({shown(line)})")
    found.variables |= set(re.findall(r"\$\{([A-Z0-9_]+)\}", line))
    if not line.startswith("-"):
        content = remembered[1] if remembered else ""
        _add_requirement(line, file.parent, where, found, constraints=constraints, content=content)
        return
    option, value = _option(line)
    if option in ("--requirement", "--constraint"):
        if "://" in value:
            raise UsageError(f"{where}: {option} {value}: only files are read; download it, and name the file")
        if not value:
            raise UsageError(f"{where}: {option} without a file name")
        included = file.parent / os.path.expandvars(value)
        if not os.path.exists(included):
            raise UsageError(f"{where}: {shown_path(included)}: no such requirements file")
        _read_file(included, found, within, constraints or option == "--constraint")
    elif option == "--editable":
        if not value:
            raise UsageError(f"{where}: {option} without a folder")
        _add_requirement(_as_path(value), file.parent, where, found)
    elif option == "--no-binary":
        found.build += [str(canonicalize_name(name)) for name in re.split(r"[,\s]+", value) if name]
    elif option in _OPTIONS:
        if option == "--find-links" and "://" not in value:
            value = str((file.parent / value).absolute())
        found.options.append(f"{option} {value}".strip())
    elif option not in _WITHOUT_EFFECT:
        raise UsageError(f"{where}: the option {shown(option)} is not known here; remove it")


def _option(line: str) -> tuple[str, str]:
    """Return the option of a line by its long name, and its value."""
    if not line.startswith("--"):
        return _SHORT.get(line[:2], line[:2]), line[2:].lstrip(" =").strip().strip("\"'")
    option, _, value = re.sub(r"[ =]", "\0", line, count=1).partition("\0")
    return option, value.strip().strip("\"'")


def _add_requirement(
    line: str,
    base: Path,
    where: str,
    found: Asked,
    advice: str = "",
    constraints: bool = False,
    content: str = "",
) -> None:
    """Add one requirement.

    - base: the directory that relative paths start from.
    - where: what messages call the place where it is written.
    - advice: what a message adds.
    - constraints: whether it only limits a version.
    - content: the hash that a folder must have.
    """
    if len(line) > _LONGEST or len(found.releases) + len(found.constraints) >= _MOST:
        limit = f"{_MOST:,} requirements of {_LONGEST:,} characters are allowed"
        raise UsageError(f"{where}: too long or too many requirements ({limit})")
    hashes = set(re.findall(r"--hash[ =]+([a-z0-9]+:[0-9a-fA-F]+)", line))
    line = re.sub(r"\s+--(hash|config-settings?|global-option)[ =]+\S+", "", line).strip()
    try:
        parsed = None if sources.is_source(line) else Requirement(line)
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{where}: {shown(line)} is not a requirement ({reason}){advice}") from None
    except RecursionError:
        raise UsageError(f"{where}: is not a requirement (too many brackets){advice}") from None
    if parsed is not None and parsed.marker is not None and not parsed.marker.evaluate():
        return
    if parsed is not None and parsed.url is None:
        name = str(canonicalize_name(parsed.name))
        (found.constraints if constraints else found.releases).append(line)
    else:
        name, address = (parsed.name, parsed.url or "") if parsed else ("", line)
        made = sources.read(name, os.path.expandvars(address) if "://" not in address else address, base, where)
        if content and content != made.content:
            raise UsageError(f"{where}: {made.url} has changed since this lock was written; make a new lock")
        if made.content and hashes and f"sha256:{made.content}" not in hashes:
            raise UsageError(f"{where}: {made.url} has the sha256 {made.content}, which is none of the given hashes")
        if constraints:
            raise UsageError(f"{where}: a constraint names an address; name it as a requirement")
        if parsed is not None and parsed.extras:
            made = Source(**{**vars(made), "extras": f"[{','.join(sorted(parsed.extras))}]"})
        other = next((known for known in found.sources if known.name == made.name), made)
        if other != made:
            raise UsageError(f"{where}: asks for {made.name} twice, from {other.url} and from {made.url}")
        found.sources += [made] if made not in found.sources else []
        name = made.name
    if hashes and not constraints:
        found.hashes[name] = hashes


def _dependencies(file: Path, text: str) -> str:
    """Return the dependencies of a pyproject.toml, one a line."""
    try:
        project: Any = tomllib.loads(text).get("project", {})
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{shown_path(file)}: not TOML ({error})") from None
    listed = project.get("dependencies") if isinstance(project, dict) else None
    if not isinstance(listed, list) or not listed or not all(isinstance(line, str) for line in listed):
        raise UsageError(f"{shown_path(file)}: has no list of dependencies in [project]; name a requirements file")
    return "\n".join(line.replace("\n", " ") for line in listed)


def name_of(line: str) -> str | None:
    """Return the package that a requirements line names. None for an option or a path."""
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
    return canonicalize_name(found[0]) if found else None
