"""Ask the table about one stack: its known defects, or its nearest judged neighbours."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from harness.environment import STACK
from harness.errors import UsageError
from harness.gate import environments, requirements
from harness.reading import shown
from harness.words import counted

#: Package -> version, without the label of a build.
Pins = dict[str, str]

#: Package -> the releases that are asked for.
Asked = dict[str, SpecifierSet]


def pins(words: str) -> Pins:
    """Return the releases that words such as "transformers==5.1.0 peft==0.18.1" name. Raises UsageError for others."""
    found: Pins = {}
    for word in words.replace(",", " ").split():
        try:
            parsed = Requirement(word)
            (limit,) = parsed.specifier
            if limit.operator not in ("==", "===") or limit.version.endswith(".*"):
                raise ValueError
            name, version = str(canonicalize_name(parsed.name)), str(Version(limit.version)).partition("+")[0]
        except (InvalidRequirement, InvalidVersion, ValueError):
            raise UsageError(f"{shown(word)}: is no release; write one such as transformers==5.1.0") from None
        if Version(found.setdefault(name, version)) != Version(version):
            raise UsageError(f"{shown(words)}: names {name} {found[name]} and {version}; name one of them")
    if not found:
        raise UsageError("name a stack, such as 'transformers==5.1.0 peft==0.18.1'")
    return found


def asked(words: str) -> Asked:
    """Return the releases that a question names: those of words, of a file of requirements, or of "current".

    A package without a limit may have any release. Raises UsageError for what cannot be read, and for what names no package.
    """
    if not words.strip():
        raise UsageError("name a stack, such as 'transformers==5.1.0 peft==0.18.1'")
    if words.strip() == requirements.CURRENT:
        pins = environments.running().pins
        return {name: _only(pins[name]) for name in STACK if pins.get(name)}
    if not os.path.exists(words):  # "a==1, b==2", but not "a>=1,<2" or "a[b,c]"
        words = re.sub(r",\s*(?=[A-Za-z])(?![^\[\]]*\])", " ", words)
    read = requirements.read(words)
    found: Asked = {}
    for line in read.releases:
        parsed = Requirement(line)
        if _is_version(parsed.name):
            raise UsageError(f"{shown(words)}: {parsed.name} is no package; write a release as transformers==5.1.0")
        name = str(canonicalize_name(parsed.name))
        found[name] = found.get(name, SpecifierSet()) & _without_builds(parsed.specifier)
    for line in read.constraints:
        parsed = Requirement(line)
        if (name := str(canonicalize_name(parsed.name))) in found:
            found[name] &= _without_builds(parsed.specifier)
    for one in read.sources:
        raise UsageError(f"{one.name or shown(words)}: comes from an address or a folder; the table has releases only")
    if not found:
        raise UsageError(f"{shown(words)}: names no release; write one such as transformers==5.1.0")
    return found


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def _only(version: str) -> SpecifierSet:
    return SpecifierSet(f"=={version.partition('+')[0]}")


def _without_builds(limits: SpecifierSet) -> SpecifierSet:
    """Return limits without the label of a build, such as "+cpu": the table has none. "===" counts as "=="."""
    try:
        return SpecifierSet(",".join(str(one).partition("+")[0].replace("===", "==") for one in limits))
    except InvalidSpecifier as error:
        raise UsageError(f"{shown(str(limits))}: is no release ({error})") from None


def pin(limits: SpecifierSet) -> str | None:
    """Return the release that limits name; None if they are a range."""
    exact = [one.version for one in limits if one.operator in ("==", "===") and not one.version.endswith(".*")]
    return exact[0] if exact else None


def as_words(question: Asked) -> str:
    """Return a question as requirements."""
    return " ".join(f"{name}{limits}" for name, limits in question.items())


def known(cells: Sequence[Mapping[str, Any]], question: Asked) -> tuple[Asked, list[str]]:
    """Return the part of a question that cells can answer, and the packages that no cell names.

    Raises UsageError if no cell names any of them, or if one is probably misspelled.
    """
    foreign = check_names(cells, question)
    return {name: limits for name, limits in question.items() if name not in foreign}, foreign


def check_names(cells: Sequence[Mapping[str, Any]], asked: Iterable[str], least: int = 1) -> list[str]:
    """Return the packages that no cell names.

    - least: how many must be in the table.

    Raises UsageError if fewer are, or if one is probably misspelled.
    """
    names = sorted({name for cell in cells for name in cell["stack"]})
    bare = {one.replace("-", ""): one for one in names}
    packages = [str(canonicalize_name(one)) for one in asked]
    foreign = [name for name in packages if name not in names]
    for name in foreign:
        if near := difflib.get_close_matches(name.replace("-", ""), list(bare), n=1, cutoff=0.8):
            raise UsageError(f"{name}: the table has no such package; the nearest name is {bare[near[0]]!r}")
    if len(packages) - len(foreign) < least:
        raise UsageError(f"{', '.join(foreign)}: the table has stacks of {', '.join(names)} only")
    return foreign


def matching(cells: Sequence[Mapping[str, Any]], question: Asked) -> list[Mapping[str, Any]]:
    """Return the cells that have what is asked for."""
    return [cell for cell in cells if all(_fits(cell, name, limits) for name, limits in question.items())]


def _fits(cell: Mapping[str, Any], name: str, limits: SpecifierSet) -> bool:
    found = _version(cell, name)
    return found is not None and limits.contains(found, prereleases=True)


def exactly(cells: Sequence[Mapping[str, Any]], asked: Pins) -> list[Mapping[str, Any]]:
    """Return the cells that have all releases that are asked for."""
    return matching(cells, {name: _only(version) for name, version in asked.items()})


def nearest(cells: Sequence[Mapping[str, Any]], question: Asked, count: int = 3) -> list[Mapping[str, Any]]:
    """Return the judged cells that are nearest: the fewest packages differ, by the fewest releases.

    How far two releases are apart is counted in the releases of the table.
    """
    releases = {
        name: sorted({Version(found) for cell in cells if (found := _version(cell, name))}) for name in question
    }

    def distance(cell: Mapping[str, Any]) -> tuple[int, int, int]:
        unequal, apart, alike = 0, 0, 0
        for name, limits in question.items():
            found = _version(cell, name)
            if found is None:
                return (len(question) + 1, len(cells), 0)
            if not limits.contains(found, prereleases=True):
                unequal += 1
                apart += 1
                ends = [Version(one.version.removesuffix(".*")) for one in limits]
                gaps = [sorted((Version(found), end)) for end in ends]
                low, high = min(gaps, key=lambda gap: sum(gap[0] < one < gap[1] for one in releases[name]))
                apart += sum(low < one < high for one in releases[name])
                # Of releases that are equally far, 5.23.0 is nearer to 5.23.1 than 5.24.0 is.
                alike += low.release[:2] == high.release[:2]
        return unequal + apart, unequal, -alike

    judged = [cell for cell in cells if cell["state"] == "judged"]
    return sorted(judged, key=distance)[:count]


def outside(cells: Sequence[Mapping[str, Any]], question: Asked) -> list[str]:
    """Return a sentence for each package of which no cell has a release that is asked for."""
    found = []
    for name, limits in question.items():
        if not any(_fits(cell, name, limits) for cell in cells):
            has = sorted({Version(version) for cell in cells if (version := _version(cell, name))})
            which = f"{has[0]} to {has[-1]}" if len(has) > 1 else f"{has[0]}"
            none = "not this one" if pin(limits) else "none of these"
            found.append(f"{name}{limits}: the table has {counted(len(has), 'release')} of it, {which}, but {none}")
    return found


def _version(cell: Mapping[str, Any], name: str) -> str | None:
    found = cell["stack"].get(name)
    return None if found is None else str(found).partition("+")[0]
