"""The tests of suites/ outside of a session of ours: find them with their cases, and call one with its fixtures.

Somebody's pytest session has its own options, fixtures and hooks, so nothing of `harness.session.plugin` is in it. What the
tests of suites/ use of pytest is little: parametrize, skipif, usefixtures, and fixtures that are functions or generators.
`find` gives each case the id that pytest gives it, by which the known defects name it; tests/test_conformance.py compares
the two.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import inspect
import itertools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from harness import paths
from harness.session import pytest_fixtures
from harness.session.state import STATE

#: Fixtures of cases that are left out: runs that hypothesis draws, and those of --spec.
_LEFT_OUT = {"draw", "brought"}


#: The files whose cases are tables of methods and layers.
_TABLES = ("test_tables.py", "test_serve.py", "test_frz_kinds.py", "test_verbs.py", "test_loaders.py", "test_loaded.py")


@dataclass(frozen=True)
class SuiteTest:
    """A test of suites/ with the parameters of one case.

    - clause, scenario: what it judges, as in reports.
    - function, module: the test.
    - values: of its parameters, by name.
    - indirect: the names of those that are handed to a fixture of that name.
    """

    clause: str
    scenario: str
    function: Callable[..., Any]
    module: ModuleType
    values: Mapping[str, Any]
    indirect: frozenset[str] = frozenset()

    @property
    def id(self) -> str:
        """What the case is called in a node id."""
        return f"{self.clause}-{self.scenario}"

    def marks(self, name: str) -> Iterator[Any]:
        """Return the marks of that name on the test and its module."""
        given = getattr(self.module, "pytestmark", [])
        whole = given if isinstance(given, list) else [given]
        return (m for m in (*_marks(self.function), *(one.mark for one in whole)) if m.name == name)


def find(clauses: Sequence[str], tables: bool = True) -> list[SuiteTest]:
    """Return the cases of some clauses, in the order of suites/.

    - tables: also those of each method of peft on each kind of layer. They say more of peft than of who trains.
    """
    wanted = set(clauses)
    found: list[SuiteTest] = []
    for path in sorted(paths.SUITES.glob("test_*.py")):
        if not tables and path.name in _TABLES:
            continue
        # A module is imported only if one of its tests may be wanted: most train with upstream, whose import takes time.
        if wanted.isdisjoint(re.findall(r"[A-Z]+-\d+", path.read_text(encoding="utf-8"))):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pytest warns of marks that somebody's session does not know
            module = importlib.import_module(f"harness.suites.{path.stem}")
        for name, function in vars(module).items():
            if not (name.startswith("test_") and inspect.isfunction(function)):
                continue
            ids = [id for mark in _marks(function) if mark.name == "clause" for id in mark.args]
            if len(ids) == 1 and ids[0] in wanted and _LEFT_OUT.isdisjoint(inspect.signature(function).parameters):
                found += _cases(ids[0], function, module)
    return found


def _marks(function: Callable[..., Any]) -> list[Any]:
    return list(getattr(function, "pytestmark", ()))


def _cases(clause: str, function: Callable[..., Any], module: ModuleType) -> Iterator[SuiteTest]:
    """Return the cases of a test: one for each combination of its parameters, the first mark's varying slowest."""
    marks = [mark for mark in _marks(function) if mark.name == "parametrize"]
    if not marks:
        yield SuiteTest(clause, function.__name__.removeprefix("test_"), function, module, {})
        return
    for parts in itertools.product(*(list(_parameters(mark)) for mark in marks)):
        values = {name: value for _, given, _ in parts for name, value in given.items()}
        indirect = frozenset(name for _, _, names in parts for name in names)
        yield SuiteTest(clause, "-".join(id for id, _, _ in parts), function, module, values, indirect)


def _parameters(mark: Any) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Return the id, the values and the indirect names of each set of values of a parametrize mark."""
    argnames, argvalues = mark.args[:2]
    names = [name.strip() for name in argnames.split(",")] if isinstance(argnames, str) else list(argnames)
    ids, indirect = mark.kwargs.get("ids"), mark.kwargs.get("indirect", False)
    for index, given in enumerate(argvalues):
        chosen = None if ids is None or callable(ids) else list(ids)[index]
        if hasattr(given, "values") and hasattr(given, "marks"):  # pytest.param(...)
            values, chosen = list(given.values), given.id if given.id is not None else chosen
        else:
            values = [given] if len(names) == 1 else list(given)
        words = (_id(value, f"{name}{index}", ids) for name, value in zip(names, values, strict=True))
        by_name = dict(zip(names, values, strict=True))
        yield chosen or "-".join(words), by_name, names if indirect is True else list(indirect or ())


def _id(value: Any, otherwise: str, ids: Any) -> str:
    """Return what pytest calls a parameter's value."""
    if callable(ids) and (own := ids(value)) is not None:
        return str(own)
    if isinstance(value, (str, int, float, complex, bool, enum.Enum)) or value is None:
        return str(value)
    return str(getattr(value, "__name__", otherwise))


# ---- calling one ----


@dataclass
class _Config:
    """What suites/ ask of pytest's configuration. It has the options of a plain session."""

    stash: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    def getoption(self, name: str, default: Any = None) -> Any:
        return self.options.get(name, default)


class Request:
    """What stands for pytest's request in a test of suites/ that somebody's session calls.

    - test: the case.
    - real: the request of their test, for pytest's own fixtures.
    - state: of the cases (`harness.session.state.State`).
    - whole: fixtures that live as long as the session, by name, and the stack that ends them.
    """

    def __init__(self, test: SuiteTest, real: pytest.FixtureRequest, state: Any, whole: Whole):
        self._test, self._real, self._whole = test, real, whole
        self._made: dict[str, Any] = {}
        self.ends = contextlib.ExitStack()
        self.param: Any = None
        self.config = _Config(real.config.stash.__class__(), {"--subject": state.subject})
        self.config.stash[STATE] = state
        self.node = SimpleNamespace(
            stash=real.config.stash.__class__(),
            callspec=SimpleNamespace(id=test.scenario, params=dict(test.values)),
            get_closest_marker=lambda name: next(test.marks(name), None),
            location=real.node.location,
            nodeid=real.node.nodeid,
        )

    def getfixturevalue(self, name: str) -> Any:
        """Return a fixture's value: of the test's module, of the harness, or pytest's own."""
        if name == "request":
            return self
        for made in (self._made, self._whole.made):
            if name in made:
                return made[name]
        fixture = next((one for home in (self._test.module, pytest_fixtures) if (one := _fixture(home, name))), None)
        if fixture is None:
            return self._real.getfixturevalue(name)
        function, scope = fixture
        made, ends = (self._made, self.ends) if scope == "function" else (self._whole.made, self._whole.ends)
        given = {one: self.getfixturevalue(one) for one in inspect.signature(function).parameters}
        self.param = self._test.values.get(name) if name in self._test.indirect else None
        value = function(**given)
        if inspect.isgenerator(value):
            value = ends.enter_context(contextlib.contextmanager(lambda: value)())
        made[name] = value
        return value


@dataclass
class Whole:
    """Fixtures of modules and of the session: their values by name, and how they end."""

    made: dict[str, Any] = field(default_factory=dict)
    ends: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


def call(test: SuiteTest, request: Request) -> None:
    """Run a test of suites/ with its fixtures. It raises what the test raises."""
    for mark in test.marks("skipif"):
        if mark.args[0]:
            pytest.skip(mark.kwargs.get("reason", ""))
    with request.ends:
        for mark in test.marks("usefixtures"):
            for name in mark.args:
                request.getfixturevalue(name)
        direct = {name: value for name, value in test.values.items() if name not in test.indirect}
        wanted = [name for name in inspect.signature(test.function).parameters if name not in direct]
        test.function(**direct, **{name: request.getfixturevalue(name) for name in wanted})


def _fixture(home: ModuleType, name: str) -> tuple[Callable[..., Any], str] | None:
    """Return the function and the scope of a fixture of a module; None if there is none of that name."""
    found: Any = getattr(home, name, None)
    if hasattr(found, "_get_wrapped_function"):  # pytest 8.4 and newer
        return found._get_wrapped_function(), found._fixture_function_marker.scope
    inner = getattr(found, "__pytest_wrapped__", None)
    return None if inner is None else (inner.obj, found._pytestfixturefunction.scope)
