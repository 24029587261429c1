"""What requirements ask for, gathered line by line from words and from files of every kind."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from packaging.markers import UndefinedEnvironmentName
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from harness.errors import UsageError
from harness.gate import sources
from harness.gate.sources import Source
from harness.reading import shown

#: Requirements, and characters of one of them. A stack has some 100, and the longest line of a lock has 60 hashes.
_MOST, _LONGEST = 3000, 2**16

#: The comment with which a lock remembers what a folder held.
CONTENT = "content sha256:"

#: Folders in which conda builds packages. `pip freeze` in a conda environment names them.
_OF_CONDA = ("/croot/", "/feedstock_root/", "/conda-bld/")


@dataclass(frozen=True)
class Index:
    """A package index that a file names.

    - name: by which other lines refer to it; may be empty.
    - url: its address.
    - default: whether it takes the place of PyPI.
    - explicit: whether only packages that name it come from there.
    """

    name: str
    url: str
    default: bool = False
    explicit: bool = False


@dataclass
class Asked:
    """What the requirements ask for.

    - releases: requirements that name a release, such as "peft>=0.18", without those whose marker does not apply.
    - sources: packages from files, folders and addresses.
    - constraints: requirements that only limit a version.
    - overrides: requirements that hold instead of whatever other packages ask for ([tool.uv] override-dependencies).
    - options: lines for uv, such as "--index-url https://...".
    - indexes: package indexes of other files than requirements files.
    - pinned: package -> the address of the index that it must come from.
    - build: packages that may be built from source (--no-binary).
    - hashes: package -> the hashes of which its files must have one.
    - files: the files that were read, and whether as constraints.
    - variables: names of environment variables that lines refer to as ${NAME}; uv puts them in.
    - prereleases: whether releases such as 5.0.0rc1 may be chosen (--pre).
    - places: package -> (place, line) of each line about it, for messages.
    - limits: package -> its sets of versions, each with the (place, line) that has it.
    - notes: sentences about what is left out.
    """

    releases: list[str] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    indexes: list[Index] = field(default_factory=list)
    pinned: dict[str, str] = field(default_factory=dict)
    build: list[str] = field(default_factory=list)
    hashes: dict[str, set[str]] = field(default_factory=dict)
    files: list[tuple[Path, bool]] = field(default_factory=list)
    variables: set[str] = field(default_factory=set)
    prereleases: bool = False
    places: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    limits: dict[str, dict[SpecifierSet, tuple[str, str]]] = field(default_factory=lambda: defaultdict(dict))
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The packages that are asked for, in their order."""
        found = [*(name for line in self.releases if (name := name_of(line))), *(made.name for made in self.sources)]
        return list(dict.fromkeys(found))

    def place_of(self, line: str) -> str:
        """Return the place of a line, such as "pins.txt, line 3"; "" if it is one of the command line's words."""
        places = (place for lines in self.places.values() for place, known in lines if known == line)
        return next((place for place in places if not place.startswith("requirements ")), "")

    def add(
        self,
        line: str,
        base: Path,
        where: str,
        advice: str = "",
        constraints: bool = False,
        content: str = "",
        hashes: Iterable[str] = (),
    ) -> None:
        """Add one requirement. Nothing is added if its marker does not apply here.

        - line: as in a requirements file, with its --hash options.
        - base: the directory that relative paths start from.
        - where: what messages call the place where it is written.
        - advice: what a message adds.
        - constraints: whether it only limits a version.
        - content: the hash that a folder must have.
        - hashes: more hashes, such as "sha256:1f...".

        Raises UsageError if it is no requirement, or contradicts one that was added before.
        """
        if len(line) > _LONGEST or len(self.releases) + len(self.constraints) >= _MOST:
            limit = f"{_MOST:,} requirements of {_LONGEST:,} characters are allowed"
            raise UsageError(f"{where}: too long or too many requirements ({limit})")
        allowed = {*hashes, *re.findall(r"--hash[ =]+([a-z0-9]+:[0-9a-fA-F]+)", line)}
        line = re.sub(r"\s+--(hash|config-settings?|global-option)[ =]+\S+", "", line).strip()
        line = self.expanded(line, where)
        parsed, extras, address = _parsed(line, where, advice)
        if parsed is not None and not applies(parsed, where):
            return
        if parsed is not None and parsed.url is None:
            name = str(canonicalize_name(parsed.name))
            self._check_pin(name, parsed, line, where)
            if constraints:
                parsed.extras = set()  # they have no meaning in a line that only limits a version
                self.constraints.append(str(parsed))
            else:
                self.releases.append(line)
        else:
            made = _source(parsed.name if parsed else "", address, base, where)
            if constraints:
                raise UsageError(f"{where}: a constraint names an address; name it as a requirement")
            self._check_source(made, where, content, allowed)
            made = dataclasses.replace(made, extras=extras) if extras else made
            self.sources += [made] if made not in self.sources else []
            name = made.name
        self.places[name].append((where, line))
        if allowed and not constraints:
            self.hashes[name] = allowed

    def expanded(self, line: str, where: str) -> str:
        """Return a line with its ${NAME} variables put in. In an address they stay, since their values may be secret.

        Raises UsageError for one that is not set.
        """
        names = re.findall(r"\$\{([A-Z0-9_]+)\}", line)
        for name in names:
            if name not in os.environ:
                raise UsageError(f"{where}: refers to ${{{name}}}, and no such environment variable is set; set it")
        if "://" in line:
            self.variables |= set(names)
            return line
        return re.sub(r"\$\{([A-Z0-9_]+)\}", lambda match: os.environ[match[1]], line)

    def _check_pin(self, name: str, parsed: Requirement, line: str, where: str) -> None:
        """Raise UsageError if one of two lines wants exactly a version that the other excludes."""
        known = self.limits[name]
        # A file may name a package thousands of times, so only exact versions are compared with all others.
        compared = known.items() if _exact(parsed.specifier) else [one for one in known.items() if _exact(one[0])]
        for limit, (place, other) in compared:
            if _contradict(parsed.specifier, limit):
                first, second = shown(other.strip()), shown(line)
                raise UsageError(f"{where}: {second} contradicts {first} ({place}); keep one of them")
        known.setdefault(parsed.specifier, (where, line))

    def _check_source(self, made: Source, where: str, content: str, hashes: set[str]) -> None:
        if content and content != made.content:
            raise UsageError(f"{where}: {made.url} has changed since this lock was written; make a new lock")
        if made.content and not made.folder and hashes and f"sha256:{made.content}" not in hashes:
            raise UsageError(f"{where}: {made.url} has the sha256 {made.content}, which is none of the given hashes")
        other = next((known for known in self.sources if known.name == made.name), made)
        if other.url != made.url or other.content != made.content:
            raise UsageError(f"{where}: asks for {made.name} twice, from {other.url} and from {made.url}")


def name_of(line: str) -> str | None:
    """Return the package that a requirements line names. None for an option or a path."""
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
    return canonicalize_name(found[0]) if found else None


def applies(parsed: Requirement, where: str) -> bool:
    """Return whether a requirement's marker, if it has one, is true here."""
    try:
        return parsed.marker is None or parsed.marker.evaluate({"extra": ""})
    except UndefinedEnvironmentName as error:
        raise UsageError(f"{where}: its marker cannot be evaluated ({error})") from None


def _parsed(line: str, where: str, advice: str) -> tuple[Requirement | None, str, str]:
    """Return a line as (requirement, extras of a package from elsewhere, its address or path)."""
    try:
        if not sources.is_source(line):
            parsed = Requirement(line)
            extras = f"[{','.join(sorted(parsed.extras))}]" if parsed.url and parsed.extras else ""
            return parsed, extras, parsed.url or ""
        address, _, marker = (part.strip() for part in re.sub(r"\s+;|;\s+", "\0", line, count=1).partition("\0"))
        # "./folder[extra]", and the same in the fragment of an address: "#egg=name[extra]".
        extras = "".join(re.findall(r"(?:^[^#]*|#.*egg=[\w.-]+)(\[[\w\s,.-]*\])(?=$|&|#)", address)[:1])
        address = address.replace(extras, "", 1) if extras else address
        if marker and not applies(Requirement(f"x; {marker}"), where):
            return Requirement(f"x; {marker}"), "", address
        return None, re.sub(r"\s", "", extras), address
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{where}: {shown(line)} is not a requirement ({reason}){advice}") from None
    except RecursionError:
        raise UsageError(f"{where}: is not a requirement (too many brackets){advice}") from None


def _source(name: str, address: str, base: Path, where: str) -> Source:
    if any(folder in address for folder in _OF_CONDA) and not os.path.exists(address.removeprefix("file://")):
        package = name or "the package"
        raise UsageError(
            f"{where}: {package} is named by a folder in which conda built it, which is not here; write "
            f"{name or 'NAME'}==VERSION (`pip list --format=freeze` prints it)"
        )
    return sources.read(name, address, base, where)


def _contradict(one: SpecifierSet, other: SpecifierSet) -> bool:
    """Return whether no version is in both, as far as one of them has an exact version."""
    exact = [(own, version) for own in (one, other) if (version := _exact(own))]
    if not exact:
        return False
    return not any((other if own is one else one).contains(version, prereleases=True) for own, version in exact)


def _exact(specifiers: SpecifierSet) -> str:
    return next((part.version for part in specifiers if part.operator == "==" and "*" not in part.version), "")
