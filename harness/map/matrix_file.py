"""The matrix: a TOML file that says which releases, paired how, are judged by which clauses."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from harness import contract
from harness.environment import STACK
from harness.errors import UsageError
from harness.gate import environments
from harness.gate.extras import OPTIONAL
from harness.gate.index import dated
from harness.map import ask
from harness.paths import SUITES
from harness.reading import parse_toml, read_text, shown, shown_path
from harness.session import concerns
from harness.session.concerns import Concerns

DEFAULT = Path(__file__).with_name("default.toml")

#: Ways to pair releases.
CONTEMPORARIES, COVERING, ALL = "contemporaries", "covering", "all"

#: The word for the release of the environment that runs the command.
_INSTALLED = "installed"

#: Which releases of a range are taken: the newest of each minor or major release, or every one.
_EVERY = {"major": 1, "minor": 2, "release": 99}

#: Bytes of a matrix.
_LIMIT = 2**20


@dataclass(frozen=True)
class Matrix:
    """What is judged.

    - where: the file, for messages.
    - releases: package -> its releases, oldest first.
    - pairing: ways to pair releases, in turn.
    - stacks: at most this many.
    - clauses: globs; empty for all.
    - specs: files of runs; with any, only these runs are judged.
    - devices: "cpu", "cuda".
    - extras: optional packages that every stack gets.
    - concerns: the routes, methods and launches that are judged.
    - first: stacks that are judged first, each as (package, release) pairs.
    - tests: tests of the suites that are collected, such as "suites/test_acc.py"; empty for all.
    """

    where: str
    releases: dict[str, tuple[str, ...]]
    pairing: tuple[str, ...] = (CONTEMPORARIES,)
    stacks: int = 400
    clauses: tuple[str, ...] = ()
    specs: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu",)
    extras: tuple[str, ...] = environments.ALWAYS
    concerns: Concerns = field(default_factory=Concerns)
    tests: tuple[str, ...] = ()
    first: tuple[tuple[tuple[str, str], ...], ...] = ()


_KEYS = (
    "pairing", "stacks", "clauses", "specs", "devices", "extras", "packages", "routes", "methods", "launches",
    "tests", "first",
)  # fmt: skip


def read(file: Path | None = None) -> Matrix:
    """Read a matrix; the default one if no file is named. Asks the index for releases.

    Raises UsageError for an unknown key, package, clause or release, and for a range without a release.
    """
    path = file or DEFAULT
    where = shown_path(path) if file else "the default matrix"
    body = parse_toml(read_text(path, _LIMIT), where)
    for key in body:
        if key not in _KEYS:
            raise UsageError(f"{where}: {shown(key)} is unknown{_near(key, _KEYS)}")
    packages = body.get("packages")
    if not isinstance(packages, dict) or not packages:
        raise UsageError(f"{where}: names no releases; write a table [packages] such as transformers = '>=5.0'")
    releases = {str(canonicalize_name(name)): _releases(where, name, value) for name, value in packages.items()}
    pairing = body.get("pairing", CONTEMPORARIES)
    pairing = (pairing,) if isinstance(pairing, str) else _texts(where, "pairing", pairing)
    for way in pairing:
        if way not in (CONTEMPORARIES, COVERING, ALL):
            raise UsageError(f"{where}: pairing {shown(way)} is none of {CONTEMPORARIES}, {COVERING}, {ALL}")
    stacks = body.get("stacks", 400)
    if not isinstance(stacks, int) or isinstance(stacks, bool) or not 1 <= stacks <= 100_000:
        raise UsageError(f"{where}: stacks = {shown(stacks)}: expected a number from 1 to 100,000")
    clauses = _texts(where, "clauses", body.get("clauses", []))
    try:
        contract.select(list(clauses))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    devices = _texts(where, "devices", body.get("devices", ["cpu"]))
    if not devices or set(devices) - {"cpu", "cuda"}:
        raise UsageError(f"{where}: devices = {shown(list(devices))}: expected cpu, cuda or both")
    extras = _texts(where, "extras", body.get("extras", list(environments.ALWAYS)))
    for name in extras:
        if name not in OPTIONAL:
            raise UsageError(f"{where}: extras: {shown(name)} is unknown{_near(name, OPTIONAL)}")
    routes, methods, launches = (_texts(where, key, body.get(key, [])) for key in ("routes", "methods", "launches"))
    judged = concerns.read(routes, methods, launches, f"{where}: {{}}s")
    tests = _texts(where, "tests", body.get("tests", []))
    for test in tests:
        if not test.startswith("suites/") or ".." in test or not (SUITES.parent / test.partition("::")[0]).is_file():
            raise UsageError(
                f"{where}: tests: {shown(test)} is no test of the suites; write one such as suites/test_acc.py"
            )
    try:
        first = tuple(tuple(ask.pins(one).items()) for one in _texts(where, "first", body.get("first", [])))
    except UsageError as error:
        raise UsageError(f"{where}: first: {error}") from None
    specs = tuple(str(path.parent / name) for name in _texts(where, "specs", body.get("specs", [])))
    return Matrix(where, releases, pairing, stacks, clauses, specs, devices, extras, judged, tests, first)


def judging(matrix: Matrix, clauses: Sequence[str]) -> Matrix:
    """Return a matrix that judges other clauses. If it judges one that is not its own, it collects all tests.

    Raises UsageError if a glob matches no clause.
    """
    own = set(contract.select(list(matrix.clauses)))
    tests = matrix.tests if set(contract.select(list(clauses))) <= own else ()
    return dataclasses.replace(matrix, clauses=tuple(clauses), tests=tests)


def _texts(where: str, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise UsageError(f"{where}: {key} = {shown(value)}: expected a list of texts")
    return tuple(value)


def _near(name: Any, known: Any) -> str:
    near = difflib.get_close_matches(str(name)[:100], list(known), n=1, cutoff=0.5)
    return f"; the nearest known name is {near[0]!r}" if near else f"; known are {', '.join(known)}"


def _releases(where: str, package: str, value: Any) -> tuple[str, ...]:
    """Return the releases that an entry of [packages] chooses, oldest first."""
    place = f"{where}: packages.{package}"
    name = str(canonicalize_name(package))
    every = "minor"
    if isinstance(value, dict):
        if unknown := set(value) - {"releases", "every"}:
            raise UsageError(f"{place}: {shown(sorted(unknown)[0])} is unknown; known are releases, every")
        every, value = value.get("every", every), value.get("releases")
        if every not in _EVERY:
            raise UsageError(f"{place}: every = {shown(every)} is none of {', '.join(_EVERY)}")
    if value == _INSTALLED:
        value = [_INSTALLED]
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        if _INSTALLED in value:
            installed = environments.running().pins.get(name)
            if installed is None:
                raise UsageError(f"{place}: {package} is not installed here; name releases")
            value = [installed.partition("+")[0] if one == _INSTALLED else one for one in value]
        try:
            chosen = {Version(one): one for one in value}
        except InvalidVersion as error:
            raise UsageError(f"{place}: {error}") from None
        known = (
            ()
            if set(value) == {environments.running().pins.get(name, "").partition("+")[0]}
            else _known(place, package)
        )
        if known and (missing := [one for one in value if Version(one) not in {Version(each) for each in known}]):
            raise UsageError(f"{place}: the index has no release {missing[0]}; the newest is {known[-1]}")
        return tuple(chosen[version] for version in sorted(chosen))
    if not isinstance(value, str):
        raise UsageError(f"{place}: {shown(value)}: expected a range such as '>=5.0,<6', or a list of releases")
    try:
        wanted = SpecifierSet(value)
    except InvalidSpecifier:
        raise UsageError(f"{place}: {shown(value)} is no range; write one such as '>=5.0,<6'") from None
    known = _known(place, package)
    inside = [one for one in known if wanted.contains(one)]
    if not inside:
        raise UsageError(f"{place}: no release is in {value}; the index has {known[0]} to {known[-1]}")
    newest = {Version(one).release[: _EVERY[every]]: one for one in inside}  # the last one, which is the newest, stays
    return tuple(newest.values())


def _known(place: str, package: str) -> tuple[str, ...]:
    try:
        known = tuple(dated(package))
    except UsageError as error:
        near = _near(package, STACK) if "404" in str(error) or "NoSuchProject" in str(error) else ""
        raise UsageError(f"{place}: {error}{near}") from None
    if not known:
        raise UsageError(f"{place}: the index has no release of {package}")
    return known
