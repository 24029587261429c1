"""What concerns a user: routes, adapter methods and launches. Cases of others are outside: listed, and not judged."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness import contract
from harness.contract.expectations import Expectation
from harness.errors import UsageError
from harness.fixtures.methods import FURTHER, METHODS
from harness.reading import shown
from harness.spec import ADD, GET, AdapterSpec, RunSpec
from harness.subjects.launch_arguments import STRATEGIES

#: What can be chosen -> the names of each.
NAMES: Mapping[str, tuple[str, ...]] = {
    "route": (GET, ADD),
    "method": (*METHODS, *FURTHER),
    "launch": tuple(STRATEGIES),
}

#: How the reason of a case begins that is outside.
OUTSIDE = "outside of the scope: "


@dataclass(frozen=True)
class Concerns:
    """The routes, methods and launches that concern a user. Empty: all.

    - routes: "get_peft_model", "add_adapter".
    - methods: rows of `harness.fixtures.methods.METHODS`.
    - launches: strategies of LaunchSpec, such as "single" and "ddp".
    """

    routes: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    launches: tuple[str, ...] = ()

    @property
    def all(self) -> bool:
        """Whether everything concerns the user."""
        return not (self.routes or self.methods or self.launches)

    def outside(self, spec: RunSpec) -> str:
        """Say which part of a run is outside, such as "method dora"; "" if the run concerns the user."""
        return (
            self.outside_by_name("route", spec.adapter.route)
            or self.outside_by_name("method", method_of(spec.adapter))
            or self.outside_by_name("launch", spec.launch.strategy)
        )

    def outside_by_name(self, kind: str, name: str) -> str:
        """Say that a name of a kind is outside, such as "launch ddp"; "" if it is not."""
        chosen = {"route": self.routes, "method": self.methods, "launch": self.launches}[kind]
        return f"{kind} {name}" if chosen and name not in chosen else ""

    def options(self) -> list[str]:
        """Return these as options of `pytest suites/`."""
        of_kind = (("--route", self.routes), ("--method", self.methods), ("--launch", self.launches))
        return [word for option, names in of_kind for name in names for word in (option, name)]


def read(routes: Iterable[str], methods: Iterable[str], launches: Iterable[str], where: str = "--{}") -> Concerns:
    """Return the concerns that names choose. UsageError names the first that is unknown, and the nearest known one.

    - where: what messages call the place of a name; {} is its kind.
    """
    chosen = {"route": tuple(routes), "method": tuple(methods), "launch": tuple(launches)}
    for kind, names in chosen.items():
        for name in names:
            if name not in NAMES[kind]:
                raise unknown(where.format(kind), name, NAMES[kind])
    return Concerns(*chosen.values())


def check_clauses(expected: Iterable[Expectation]) -> None:
    """Raise UsageError for a known defect of a clause that there is not."""
    known = contract.clauses()
    for one in expected:
        if one.clause not in known:
            raise unknown(f"{one.path}: clause", one.clause, known)


def unknown(where: str, name: Any, known: Iterable[str]) -> UsageError:
    """Return the error about a name that there is not, with the nearest that there is."""
    known = list(known)
    near = difflib.get_close_matches(str(name)[:100], known, n=1, cutoff=0.5)
    hint = f"; the nearest known name is {near[0]!r}" if near else f"; known are {', '.join(known)}"
    return UsageError(f"{where}: {shown(name)} is unknown{hint}")


def method_of(adapter: AdapterSpec) -> str:
    """Return the row of METHODS that an adapter is: of those with its type, the one with most of its switches set.

    An adapter of a type without a row has the name of its type, in small letters.
    """
    table = METHODS | FURTHER
    rows = {name: method.config for name, method in table.items() if method.peft_type == adapter.peft_type}
    shared = set.intersection(*(set(config) for config in rows.values())) if rows else set()
    switches = {
        name: {key: value for key, value in config.items() if key not in shared} for name, config in rows.items()
    }
    fitting = [
        name for name, own in switches.items() if all(adapter.config.get(key) == value for key, value in own.items())
    ]
    return max(fitting, key=lambda name: len(switches[name]), default=adapter.peft_type.lower().replace("_", "-"))
