"""How far a cause reaches: the fields of a RunSpec that all of its runs have, and no run that holds."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from harness.spec import changes
from harness.words import counted

Spec = Mapping[str, Any]

#: A field's dotted name, and its value as text.
Pair = tuple[str, str]

#: Identity of a spec -> its fields.
Runs = dict[str, dict[str, str]]

#: Fields that users choose first. They are named before others that separate as well.
_FIRST = (
    "adapter.route",
    "adapter.peft_type",
    "model.family",
    "model.quantization",
    "model.dtype",
    "launch.strategy",
    "launch.ranks",
    "launch.device",
    "resume",
    "arguments.optim",
    "arguments.bf16",
    "arguments.fp16",
    "arguments.gradient_checkpointing",
)

#: Fields whose value says nothing of a run's kind.
_IDLE = (
    "schema_version",
    "model.seed",
    "adapter.seed",
    "adapter.name",
    "data.seed",
    "arguments.seed",
    "arguments.report_to",
)

#: Changes that name a directory of this machine.
_PLACES = ("model.path=", "data.path=")

#: The share of a cause's runs that must have a field for it to be named.
_MOST = 0.9


def identity(spec: Spec) -> str:
    """Return a text that is the same for equal specs."""
    return json.dumps(spec, sort_keys=True, default=str)


def reaches(failing: Iterable[Spec], holding: Iterable[Spec]) -> str:
    """Return which runs have a cause and which have not, in one sentence. "" if no field of the specs separates them.

    - failing: the specs of the runs that have it.
    - holding: those of the runs that have not. A run of both counts as failing.
    """
    bad = {name: _fields(name) for name in map(identity, failing)}
    good = {name: _fields(name) for name in map(identity, holding) if name not in bad}
    if not bad:
        return ""
    if len(bad) == 1:
        (only,) = bad
        what = [change for change in changes(json.loads(only)) if not change.startswith(_PLACES)]
        return f"one run: {', '.join(what[:4])}{', ...' * (len(what) > 4)}" if what else "the default run"
    counts = Counter(pair for fields in bad.values() for pair in fields.items())
    shared = [pair for pair, count in counts.items() if count >= _MOST * len(bad)]
    clean = [pair for pair in shared if _having(good, pair) == 0]
    if good and clean:
        return _every(sorted(clean, key=_rank)[:1], bad, good)
    if good and (pairs := _pairs(shared, good)):
        return _every(pairs, bad, good)
    return ""


def _every(pairs: list[Pair], bad: Runs, good: Runs) -> str:
    having = sum(all(fields.get(name) == value for name, value in pairs) for fields in bad.values())
    counts = counted(having, "run") if having == len(bad) else f"{having} of the {len(bad)} runs that have it"
    which = f"every run {' and '.join(map(_with, pairs))} ({counts})"
    if len(pairs) > 1:
        one, two = pairs
        parts = [
            f"{counted(_having(good, pair), 'run')} {_with(pair)} and another {_leaf(rest[0])} hold"
            for pair, rest in ((one, two), (two, one))
        ]
        return f"{which}; {', '.join(parts)}"
    name, _ = pairs[0]
    values = {fields.get(name, "") for fields in good.values()}
    (value,) = values if len(values) == 1 else ("",)
    if name == "adapter.route" and value:
        return f"{which}; {value} is untouched: {counted(len(good), 'run')} hold"
    return f"{which}; {counted(len(good), 'run')} {_with((name, value)) if value else 'without it'} hold"


def _with(pair: Pair) -> str:
    name, value = pair
    return f"through {value}" if name == "adapter.route" else f"with {_leaf(name)} {value}"


def _leaf(name: str) -> str:
    return name.removeprefix("arguments.").rpartition(".")[2]


def _pairs(shared: list[Pair], good: Runs) -> list[Pair]:
    """Return the first two fields that together no run has that holds; [] if there are none.

    Each of the two must be in runs that hold, so that both are needed. Only the fields that users choose first are paired:
    among a hundred others, two that separate by chance are easily found.
    """
    chosen = sorted((pair for pair in shared if pair[0] in _FIRST), key=_rank)
    for index, one in enumerate(chosen):
        for two in chosen[index + 1 :]:
            if not any(fields.get(one[0]) == one[1] and fields.get(two[0]) == two[1] for fields in good.values()):
                return [one, two]
    return []


def _having(runs: Runs, pair: Pair) -> int:
    return sum(fields.get(pair[0]) == pair[1] for fields in runs.values())


def _rank(pair: Pair) -> tuple[int, int, str]:
    name = pair[0]
    return (_FIRST.index(name) if name in _FIRST else len(_FIRST), name.count("."), name)


@functools.lru_cache(maxsize=16384)
def _fields(identity: str) -> dict[str, str]:
    """Return the fields of a spec, given by its identity, by their dotted names, with their values as text."""
    found: dict[str, str] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Mapping) and path != "resume":
            for name, item in value.items():
                walk(item, f"{path}.{name}" if path else str(name))
        elif path not in _IDLE:
            found[path] = ("no" if value is None else "yes") if path == "resume" else _shown(value)

    walk(json.loads(identity), "")
    return found


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
