"""Ask the table about one stack: its known defects, or its nearest judged neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from harness.errors import UsageError
from harness.reading import shown

#: Package -> version, without the label of a build.
Pins = dict[str, str]


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
        if found.setdefault(name, version) != version:
            raise UsageError(f"{name} is named twice, as {shown(found[name])} and {shown(version)}; name one release")
    if not found:
        raise UsageError("name a stack, such as 'transformers==5.1.0 peft==0.18.1'")
    return found


def exactly(cells: Sequence[Mapping[str, Any]], asked: Pins) -> list[Mapping[str, Any]]:
    """Return the cells that have all releases that are asked for."""
    return [cell for cell in cells if all(_version(cell, name) == version for name, version in asked.items())]


def nearest(cells: Sequence[Mapping[str, Any]], asked: Pins, count: int = 3) -> list[Mapping[str, Any]]:
    """Return the judged cells that are nearest: the fewest packages differ, by the fewest releases.

    How far two releases are apart is counted in the releases of the table.
    """
    known = {name: sorted({Version(found) for cell in cells if (found := _version(cell, name))}) for name in asked}

    def distance(cell: Mapping[str, Any]) -> tuple[int, int, int]:
        unequal, apart, alike = 0, 0, 0
        for name, version in asked.items():
            found = _version(cell, name)
            if found is None:
                return (len(asked) + 1, len(cells), 0)
            if found != version:
                low, high = sorted((Version(found), Version(version)))
                unequal += 1
                apart += 1 + sum(low < one < high for one in known[name])
                # Of releases that are equally far, 5.23.0 is nearer to 5.23.1 than 5.24.0 is.
                alike += low.release[:2] == high.release[:2]
        return unequal + apart, unequal, -alike

    judged = [cell for cell in cells if cell["state"] == "judged"]
    return sorted(judged, key=distance)[:count]


def missing(cells: Sequence[Mapping[str, Any]], asked: Pins) -> list[str]:
    """Return the packages that no cell names."""
    return [name for name in asked if not any(name in cell["stack"] for cell in cells)]


def _version(cell: Mapping[str, Any], name: str) -> str | None:
    found = cell["stack"].get(name)
    return None if found is None else str(found).partition("+")[0]
