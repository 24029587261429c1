"""Recorded figures, each with its environment. A figure is compared only with one of the same environment."""

from __future__ import annotations

import functools
import json
import math
import platform
import subprocess
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from harness import environment
from harness.errors import UsageError
from harness.files import write_whole
from harness.paths import FIXTURES, ROOT
from harness.reading import read_json, shown

SCHEMA_VERSION = 1

DIRECTORY = FIXTURES / "baselines"

#: The packages that a step runs through. With another release of one, the figures differ.
PACKAGES = ("torch", "transformers", "peft", "accelerate")


#: The name of the component that matters only for bfloat16 on a CPU.
BFLOAT16 = "bfloat16 by"

#: CPU flags of the instruction sets for which oneDNN has bfloat16 kernels of their own, the best first. The kernels need
#: different scratch memory: a step's peak is 862,572 bytes with avx2, 862,620 with amx_bf16, and 866,716 with avx512_bf16
#: (torch 2.13).
KERNELS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


def components(device: str) -> dict[str, str]:
    """Return what a figure depends on, by name."""
    here = environment.describe(device)
    flags = environment.cpu_flags()
    by = {BFLOAT16: next((flag for flag in KERNELS if flag in flags), "other")} if device == "cpu" else {}
    return by | {
        **{package: str(here["versions"][package]) for package in PACKAGES},
        "python": ".".join(platform.python_version_tuple()[:2]),
        "machine": platform.machine(),
        "device": str(here["device"]),
    }


@dataclass
class Baseline:
    """The figures of one environment.

    - components: the environment, see `components`.
    - commit: the harness's commit that recorded them.
    - counters: scenario -> `harness.throughput.counters.Counters` as JSON.
    - ratios: scenario -> "ratio", how many times as long as the reference's a step takes, with "low" and "high", the ends of
      its 99 % interval.
    - unpatched: whether the ratios were timed on upstream's own functions. Before 2026-11-28 a patch cached a look-up that
      accelerate makes in each step, so a step of the Trainer took 2.6 % less (`harness.patches`).
    """

    components: dict[str, str]
    commit: str = ""
    counters: dict[str, Any] = field(default_factory=dict)
    ratios: dict[str, dict[str, float]] = field(default_factory=dict)
    unpatched: bool = False

    def differs(self, here: dict[str, str], bf16: bool) -> list[str]:
        """Return the components in which another environment differs, in words.

        - here: the components of the other environment.
        - bf16: whether the figure is of a bfloat16 run.
        """
        return [
            f"{name} {here.get(name)}, not {was}"
            for name, was in self.components.items()
            if here.get(name) != was and (bf16 or name != BFLOAT16)
        ]


def load(directory: Path = DIRECTORY) -> list[Baseline]:
    """Return the baselines in a directory. A file that cannot be read, or was edited badly, is not used, with a warning."""
    found = []
    for file in sorted(directory.glob("*.json")):
        try:
            baseline = _baseline(read_json(file))
        except UsageError as error:
            _say_once(str(error))
        except (LookupError, TypeError, ValueError) as error:
            _say_once(f"{file}: {error}")
        else:
            found += [baseline] if baseline is not None else []
    return found


@functools.cache
def _say_once(what: str) -> None:
    warnings.warn(f"{what}; this file of baselines is not used, record it again with --record", stacklevel=2)


def _baseline(body: Any) -> Baseline | None:
    """Return the baseline in a file's JSON; None for figures of another kind or schema. Raises if it is damaged."""
    if not isinstance(body, dict):
        raise TypeError("no object")
    if "kind" not in body and "components" not in body:
        return None
    if body.get("kind", "baseline") != "baseline":
        return None
    if body.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version {shown(body.get('schema_version'))}, expected {SCHEMA_VERSION}")
    made = Baseline(**{name: value for name, value in body.items() if name not in ("schema_version", "kind")})
    sound = [isinstance(made.commit, str), isinstance(made.unpatched, bool), _is_table(made.components, str)]
    sound += [isinstance(made.counters, dict) and all(map(_is_count, made.counters.values()))]
    sound += [isinstance(made.ratios, dict) and all(map(_is_ratio, made.ratios.values()))]
    if not all(sound):
        raise ValueError("components, counters or ratios are none")
    return made


def _is_table(value: Any, kind: type) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and all(type(item) is kind for item in value.values())


def _is_count(figure: Any) -> bool:
    """Return whether a figure is that of `harness.throughput.counters.Counters`."""
    if not isinstance(figure, dict) or not _is_table(figure.get("by_operation"), int):
        return False
    values = figure.get("values")
    return _is_table(values, list) and all(
        steps and all(type(step) is int for step in steps) for steps in values.values()
    )


def _is_ratio(figure: Any) -> bool:
    names = ("ratio", "low", "high")
    return isinstance(figure, dict) and all(
        isinstance(figure.get(name), (int, float)) and 0 < figure[name] < math.inf for name in names
    )


def matching(
    device: str, directory: Path = DIRECTORY, bf16: bool = True, kind: str = "counters", name: str = ""
) -> tuple[Baseline | None, str]:
    """Return the baseline of this environment; or None, and why the nearest one is not comparable.

    If several match, one that has the figure is taken.

    - bf16: whether the figure is of a bfloat16 run.
    - kind: "counters" or "ratios".
    - name: the scenario.
    """
    here = components(device)
    baselines = load(directory)
    if not baselines:
        return None, f"{directory} holds no baseline"

    def distance(each: Baseline) -> tuple[int, bool, bool]:
        return len(each.differs(here, bf16)), name not in getattr(each, kind), not each.unpatched

    nearest = min(baselines, key=distance)
    differs = nearest.differs(here, bf16)
    if kind == "ratios" and nearest.ratios and not nearest.unpatched:
        differs.append("its ratios were timed with a patch of upstream, which PERF-04 leaves out since 2026-11-28")
    return (nearest, "") if not differs else (None, f"not comparable with what is recorded: {'; '.join(differs)}")


def record(
    device: str, commit: str, counters: dict[str, Any], ratios: dict[str, dict[str, float]], directory: Path
) -> Path:
    """Write figures into the baseline of this environment, and return its file. Figures that are not given stay.

    - commit: the commit of the code that made the figures (`clean_commit`). It must be determined before the first figure is
      written, because writing changes the tree.
    """
    here = components(device)
    old, _ = matching(device, directory)
    body = {
        "schema_version": SCHEMA_VERSION,
        "kind": "baseline",
        "components": here,
        "commit": commit,
        "counters": {**(old.counters if old else {}), **counters},
        # Ratios that were timed with a patch do not stay beside those that were timed without.
        "ratios": {**(old.ratios if old and (old.unpatched or not ratios) else {}), **ratios},
        "unpatched": bool(ratios) or (old is not None and old.unpatched),
    }
    words = [here[name].replace("+", "-") for name in PACKAGES] + [here["python"], here["device"].replace(" ", "-")]
    words += [here[BFLOAT16]] if BFLOAT16 in here else []
    path = directory / f"{'_'.join(words)}.json".lower()
    write_whole(path, json.dumps(body, indent=1) + "\n")
    return path


def clean_commit(root: Path = ROOT) -> str:
    """Return the commit of the harness's checkout. UsageError if there is none, or if tracked files differ from it."""
    try:
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
        commit = _git(root, "rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        raise UsageError(f"--record: {root} is no git checkout, so a figure could not be traced to its code") from None
    if changed:
        names = ", ".join(line[3:] for line in changed.splitlines()[:3])
        raise UsageError(f"--record: {root} has uncommitted changes ({names}); commit them first")
    return commit


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.rstrip()
