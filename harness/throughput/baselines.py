"""Recorded figures, each with the environment that it was recorded in, and which of them the present one may be held to."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import environment
from harness.errors import UsageError
from harness.files import write_whole
from harness.paths import FIXTURES, ROOT

SCHEMA_VERSION = 1

DIRECTORY = FIXTURES / "baselines"

#: What a step is made of: with another of these the figures are others.
PACKAGES = ("torch", "transformers", "peft", "accelerate")


#: The component that only figures of bfloat16 on a CPU depend on.
BFLOAT16 = "bfloat16 by"

#: Instruction sets for which oneDNN has bfloat16 kernels of their own, the best first, by the CPU flag that tells: their
#: scratch memory differs, and with it the bytes at a step's peak (862,572 with avx2, 862,620 with amx_bf16, 866,716 with
#: avx512_bf16).
KERNELS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


def components(device: str) -> dict[str, str]:
    """What a figure depends on, by name."""
    seen = environment.describe(device)
    flags = environment.cpu_flags()
    by = {BFLOAT16: next((one for one in KERNELS if one in flags), "other")} if device == "cpu" else {}
    return by | {
        **{package: str(seen["versions"][package]) for package in PACKAGES},
        "python": ".".join(platform.python_version_tuple()[:2]),
        "machine": platform.machine(),
        "device": str(seen["device"]),
    }


@dataclass
class Baseline:
    """components: the environment. commit: of the harness. counters: scenario -> Counters as JSON. ratios: scenario -> how
    many times longer than the reference's a step takes, with its interval.
    """

    components: dict[str, str]
    commit: str = ""
    counters: dict[str, Any] = field(default_factory=dict)
    ratios: dict[str, dict[str, float]] = field(default_factory=dict)

    def differs(self, here: dict[str, str], bf16: bool) -> list[str]:
        """The components in which another environment differs, in words. bf16: for a figure of a bfloat16 run."""
        return [
            f"{name} {here.get(name)}, not {was}"
            for name, was in self.components.items()
            if here.get(name) != was and (bf16 or name != BFLOAT16)
        ]


def load(directory: Path = DIRECTORY) -> list[Baseline]:
    """The baselines in a directory. UsageError names a file that is none."""
    found = []
    for file in sorted(directory.glob("*.json")):
        try:
            body = json.loads(file.read_text(encoding="utf-8"))
            if body.pop("schema_version") == SCHEMA_VERSION and body.pop("kind") == "baseline":
                found.append(Baseline(**body))
        except KeyError:
            continue  # another kind of figure lies there too
        except (ValueError, TypeError) as error:
            raise UsageError(f"{file}: no baseline ({error}); record it anew with pytest suites/ --record") from None
    return found


def matching(
    device: str, directory: Path = DIRECTORY, bf16: bool = True, kind: str = "counters", name: str = ""
) -> tuple[Baseline | None, str]:
    """The baseline of this environment; or none, and why the nearest is not comparable. bf16: see `Baseline.differs`.

    Of several, one that holds the figure of a kind and a name.
    """
    here = components(device)
    known = load(directory)
    if not known:
        return None, f"{directory} holds no baseline"
    nearest = min(known, key=lambda one: (len(one.differs(here, bf16)), name not in getattr(one, kind)))
    differs = nearest.differs(here, bf16)
    return (nearest, "") if not differs else (None, f"not comparable with what is recorded: {'; '.join(differs)}")


def record(
    device: str, commit: str, counters: dict[str, Any], ratios: dict[str, dict[str, float]], directory: Path
) -> Path:
    """Write the baseline of this environment; what is not given stays as it was.

    commit: of the code that made the figures (`clean_commit`), to which they must be traceable. To be asked before the first
    is written: a baseline that was recorded anew is a change of the tree.
    """
    here = components(device)
    old, _ = matching(device, directory)
    body = {
        "schema_version": SCHEMA_VERSION,
        "kind": "baseline",
        "components": here,
        "commit": commit,
        "counters": {**(old.counters if old else {}), **counters},
        "ratios": {**(old.ratios if old else {}), **ratios},
    }
    words = [here[name].replace("+", "-") for name in PACKAGES] + [here["python"], here["device"].replace(" ", "-")]
    words += [here[BFLOAT16]] if BFLOAT16 in here else []
    path = directory / f"{'_'.join(words)}.json".lower()
    write_whole(path, json.dumps(body, indent=1) + "\n")
    return path


def clean_commit(root: Path = ROOT) -> str:
    """The commit of the harness's checkout. UsageError where there is none, or where files differ from it."""
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
