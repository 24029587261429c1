"""Find packages of a stack that want another release of a package than the stack has.

Two sources are read, as files: nothing of the stack is run.

1. The metadata of the installed packages (`Requires-Dist`), from the packages of the stack on.
2. What transformers checks while it runs. It has a table of versions, and a few constants (`_CHECKED`).

uv never makes a stack that contradicts the metadata. A stack that somebody else installed can, and no metadata has what is
checked at run time.
"""

from __future__ import annotations

import ast
import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from harness.environment import STACK
from harness.errors import UsageError
from harness.gate import index, installed
from harness.gate.environments import Environment
from harness.gate.requirements import CURRENT
from harness.reading import read_text

#: Bytes of a source file that is read.
_LIMIT = 2**22

#: File of transformers -> name of a constant with the oldest version -> package.
#: - integrations/peft.py calls check_peft_version with it in add_adapter, load_adapter and whatever else handles adapters.
#: - utils/import_utils.py: a package that is older counts as not installed; the Trainer then refuses to start.
_CHECKED = {
    "integrations/peft.py": {"MIN_PEFT_VERSION": "peft"},
    "utils/import_utils.py": {"ACCELERATE_MIN_VERSION": "accelerate", "BITSANDBYTES_MIN_VERSION": "bitsandbytes"},
}

#: The table of versions, and the file that checks some of its rows whenever transformers is imported.
_TABLE, _AT_IMPORT = "dependency_versions_table.py", "dependency_versions_check.py"


@dataclass(frozen=True)
class Contradiction:
    """A package that wants another release of a package than the stack has.

    - package, version: who wants it.
    - wants: the requirement, such as "peft >= 0.22.0".
    - has: the version in the stack; empty if it is not installed.
    - available: whether the index has a release that fits; None if that is not known.
    """

    package: str
    version: str
    wants: str
    has: str
    available: bool | None = None

    def __str__(self) -> str:
        has = f"the stack has {self.has}" if self.has else "the stack has none"
        known = {True: "", False: "; no such release is on the index", None: "; the index could not be read"}
        return f"{self.package} {self.version} wants {self.wants}, {has}{known[self.available]}"


def contradictions(environment: Environment) -> list[Contradiction]:
    """Return what the packages of an environment want and do not have.

    The index is asked for a release that fits, if there is any contradiction.
    """
    found = {
        canonicalize_name(made.metadata["Name"]): made
        for made in reversed(list(_distributions(environment)))
        if made.metadata["Name"]
    }
    wrong: dict[tuple[str, str], Contradiction] = {}
    for owner, requirement in _wanted(found):
        name = canonicalize_name(requirement.name)
        has = found[name].version if name in found else ""
        if has and (not requirement.specifier or _fits(requirement.specifier, has)):
            continue
        limits = ", ".join(_spaced(str(one)) for one in sorted(requirement.specifier, key=str))
        wants = f"{requirement.name} {limits}".strip()
        key = str(canonicalize_name(owner.metadata["Name"])), f"{name} {limits}"
        available = _available(name, requirement.specifier)
        wrong.setdefault(key, Contradiction(owner.metadata["Name"], owner.version, wants, has, available))
    return list(wrong.values())


def of_sides(sides: Mapping[str, Environment]) -> list[dict[str, Any]]:
    """Return the contradictions of several environments as a gate's report has them. sides: name -> environment."""
    found: dict[Contradiction, list[str]] = {}
    for name, environment in sides.items():
        for one in contradictions(environment):
            found.setdefault(one, []).append(name)
    return [{"sides": names, "sentence": str(one), **asdict(one)} for one, names in found.items()]


def _spaced(limit: str) -> str:
    digits = limit.lstrip("<>=!~")
    return f"{limit[: len(limit) - len(digits)]} {digits}"


def _distributions(environment: Environment) -> Iterator[importlib.metadata.Distribution]:
    if environment.asked == CURRENT:
        yield from importlib.metadata.distributions()
    else:
        packages = installed.site_packages(Path(environment.python).parent.parent)
        yield from importlib.metadata.distributions(path=[str(packages)])


_Found = Mapping[Any, importlib.metadata.Distribution]


def _wanted(found: _Found) -> Iterator[tuple[importlib.metadata.Distribution, Requirement]]:
    """Yield (package, requirement): the metadata of the stack's packages and of all that they need, then run-time checks."""
    ahead, seen = [name for name in STACK if name in found], set(STACK)
    while ahead:
        owner = found[ahead.pop(0)]
        for text in owner.requires or ():
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            yield owner, requirement
            name = canonicalize_name(requirement.name)
            if name in found and name not in seen:
                seen.add(name)
                ahead.append(name)
    if "transformers" in found:
        for requirement in _checked_at_run_time(Path(str(found["transformers"].locate_file("transformers")))):
            # What is not installed is not checked.
            if canonicalize_name(requirement.name) in found:
                yield found["transformers"], requirement


def _checked_at_run_time(package: Path) -> Iterator[Requirement]:
    """Yield what transformers checks. package: its directory."""
    for file, constants in _CHECKED.items():
        values = _literals(package / file)
        for constant, name in constants.items():
            if isinstance(oldest := values.get(constant), str):
                yield from _requirement(f"{name}>={oldest}")
    table, checked = _literals(package / _TABLE).get("deps"), _literals(package / _AT_IMPORT)
    if isinstance(table, dict):
        for name in {*_names(checked.get("pkgs_to_check_at_runtime")), *STACK} & table.keys():
            if name != "python" and isinstance(table[name], str):
                yield from _requirement(table[name])


def _names(value: object) -> list[str]:
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def _requirement(text: str) -> Iterator[Requirement]:
    try:
        yield Requirement(text)
    except (InvalidRequirement, InvalidSpecifier):
        return


def _literals(file: Path) -> dict[str, object]:
    """Return the constants that a module assigns at its top level; none if it is not there or cannot be read."""
    found: dict[str, object] = {}
    try:
        tree = ast.parse(read_text(file, _LIMIT))
    except (OSError, UsageError, SyntaxError, ValueError, RecursionError, MemoryError):
        return found
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                continue
    return found


def _fits(specifier: SpecifierSet, version: str) -> bool:
    try:
        # A pre-release that is installed was wanted.
        return specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return True


def _available(package: str, specifier: SpecifierSet) -> bool | None:
    try:
        return any(_fits(specifier, version) for version in index.releases(package))
    except UsageError:
        return None
