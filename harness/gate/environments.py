"""Environments: stacks that uv installs from requirements, in a cache keyed by the resolved versions.

The pipeline of `make`:

1. `requirements.lines` reads what the user asked for.
2. `resolve` adds what the suites need and lets uv choose versions. Packages that the user did not name keep the running
   environment's versions, as far as the requirements allow it.
3. `install` makes the environment in the cache, unless an equal one is there.

The harness is not installed into an environment. `Environment.variables` puts it on the path, so that both sides of a gate
run the same code.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from harness.environment import STACK
from harness.errors import UsageError
from harness.gate import requirements, uv
from harness.gate.requirements import CURRENT, LEFT_OUT, name_of
from harness.paths import PACKAGE, USER_MODULES, cache_directory, keeping_bytecode
from harness.processes.parent_watch import OWNER

#: What the suites import, and what cases need that are skipped without it.
_NEEDED = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "safetensors",
    "numpy",
    "packaging",
    "pytest",
    "pytest-xdist",
    "pytest-benchmark",
    "hypothesis",
    "jsonschema",
    "rich",
    "typer",
    "optuna",
    "tensorboard",
    "tomli; python_version < '3.11'",
)


@dataclass(frozen=True)
class Environment:
    """A stack that can be judged.

    - asked: the requirements as the user gave them.
    - python: path of its interpreter.
    - pins: distribution -> version, for all that is installed.
    - lock: a requirements file that makes it again, with hashes if it was resolved here.
    - key: equal for environments with the same distributions.
    """

    asked: str
    python: str
    pins: dict[str, str]
    lock: str
    key: str

    @property
    def stack(self) -> dict[str, str]:
        """The installed packages of STACK, with their versions."""
        return {name: self.pins[name] for name in STACK if name in self.pins}

    def variables(self) -> dict[str, str]:
        """Return the environment variables for its processes: the caller's own, with this harness on PYTHONPATH.

        Processes in it look for the user's own subjects and --preload modules in the current directory of this one.
        """
        path = [str(_link_to_harness())]
        left_out = ["PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"]
        # An environment that was made here has its bytecode inside.
        if self.asked != CURRENT:
            left_out += ["PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE"]
        if self.asked == CURRENT and os.environ.get("PYTHONPATH"):
            path.append(os.environ["PYTHONPATH"])
        inherited = {name: value for name, value in os.environ.items() if name not in left_out}
        users = os.environ.get(USER_MODULES) or os.getcwd()
        return keeping_bytecode(inherited) | {"PYTHONPATH": os.pathsep.join(path), USER_MODULES: users}

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run its Python with these arguments. Options are those of subprocess.run."""
        return subprocess.run([self.python, *arguments], env=self.variables(), text=True, check=False, **options)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start its Python with these arguments. Options are those of subprocess.Popen.

        Suites that it runs end when this process ends.
        """
        variables = self.variables() | {OWNER: str(os.getpid())}
        return subprocess.Popen([self.python, *arguments], env=variables, text=True, **options)


class Unresolvable(UsageError):
    """No environment can meet the requirements. The message has the resolver's own reason."""


def make(asked: str, home: Path | None = None) -> Environment:
    """Return the environment for requirements, and make it if it is not there yet.

    - asked: "current", a requirements or lock file, or words such as "transformers==5.1.0 peft==0.18.1".
    - home: the directory that holds environments; the cache by default.

    Raises Unresolvable if nothing meets the requirements, and UsageError if they cannot be read.
    """
    asked = asked.strip()
    if asked == CURRENT:
        return running()
    return install(asked, resolve(asked), home)


@functools.cache
def running() -> Environment:
    """Return the environment of this process."""
    pins: dict[str, str] = {}
    for found in importlib.metadata.distributions():
        if found.metadata["Name"]:
            # If two releases are on the path, Python imports the first.
            pins.setdefault(str(canonicalize_name(found.metadata["Name"])), found.version)
    lock = "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()) if name != "peft-harness")
    return Environment(CURRENT, sys.executable, pins, lock, _key(lock))


# ---- resolving ----


def resolve(asked: str) -> str:
    """Return the lock for requirements: every distribution with its version and hashes.

    Raises Unresolvable if no versions meet them.
    """
    given = [line for line in requirements.lines(asked) if name_of(line) != LEFT_OUT]
    named = {name for line in given if (name := name_of(line))}
    needed = [line for line in _NEEDED if name_of(line) not in named]
    torch = running().pins.get("torch")
    if "torch" not in named and torch:
        needed = [f"torch=={torch.partition('+')[0]}" if line == "torch" else line for line in needed]
    with tempfile.TemporaryDirectory() as folder:
        source, lock = Path(folder, "requirements.in"), Path(folder, "lock.txt")
        source.write_text("\n".join([*given, *needed]) + "\n")
        # uv prefers the versions that it finds in its output file.
        preferred = {name: version for name, version in running().pins.items() if name not in named}
        lock.write_text("".join(f"{name}=={version}\n" for name, version in preferred.items()))
        options = ["--generate-hashes", "--no-header", "--no-annotate", "--python", sys.executable]
        done = uv.run("pip", "compile", str(source), "--output-file", str(lock), *options)
        if done.returncode != 0:
            raise Unresolvable(f"{asked!r}: {uv.reason(done.stderr, str(source))}")
        return lock.read_text()


# ---- installing ----


def install(asked: str, lock: str, home: Path | None = None) -> Environment:
    """Return the environment that a lock describes, and make it if it is not there yet.

    It is made in a temporary directory and then renamed, so that nobody sees half of it.
    """
    pins = {
        str(canonicalize_name(match[1])): match[2]
        for match in re.finditer(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", lock, re.MULTILINE)
    }
    key = _key("".join(f"{name}=={version}\n" for name, version in sorted(pins.items())))
    home = home or cache_directory() / "environments"
    directory = home / key
    python = directory / "bin" / "python"
    if not python.is_file():
        home.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(home)
        with _partial(home, key) as partial:
            _install(asked, lock, partial)
            _link_bytecode(partial, home)
            # If another process was faster, its environment is equal to this one.
            with contextlib.suppress(OSError):
                partial.rename(directory)
    # `peft-harness cache` shows by it when an environment was last used.
    with contextlib.suppress(OSError):
        os.utime(directory)
    return Environment(asked, str(python), pins, lock, key)


def _install(asked: str, lock: str, directory: Path) -> None:
    # To check the hash of a local wheel, uv unpacks it again, which takes 13 s for torch. The lock was made from that
    # very wheel, so local wheels are installed without the check.
    entries = re.findall(r"^\S+==\S+(?:.*\\\n)*.*\n", lock, re.MULTILINE)
    local = [entry for entry in entries if uv.is_local_wheel(*entry.split()[0].split("=="))]
    others = [entry for entry in entries if entry not in local]
    rest, python = directory.with_suffix(".lock"), str(directory / "bin" / "python")
    rest.write_text("".join(others))
    checked = ["--require-hashes"] if all("--hash" in entry for entry in others) else []
    commands = [
        ["venv", "--relocatable", "--python", sys.executable, str(directory)],
        ["pip", "sync", *checked, "--python", python, str(rest)],
    ]
    if local:
        commands.append(["pip", "install", "--no-deps", "--python", python, *(entry.split()[0] for entry in local)])
    try:
        for words in commands:
            done = uv.run(*words)
            if done.returncode != 0:
                raise Unresolvable(f"{asked!r}: resolved, but cannot be installed: {uv.reason(done.stderr, str(rest))}")
    finally:
        rest.unlink()


def _link_bytecode(directory: Path, home: Path) -> None:
    """Link the bytecode that other environments have of the same distributions.

    Without it the first import of torch alone takes 8 s. uv links the same source files into every environment, so their
    times are equal and Python accepts the bytecode. If it does not, it compiles again.
    """
    (packages,) = directory.glob("lib/python*/site-packages")
    lenders = [
        other for other in home.glob("[!.]*/lib/python*/site-packages") if other.parent.name == packages.parent.name
    ]
    for installed in packages.glob("*.dist-info"):
        lender = next((other for other in lenders if (other / installed.name).is_dir()), None)
        if lender is None:
            continue
        for top in {line.split("/")[0] for line in (installed / "RECORD").read_text().splitlines() if ".py," in line}:
            for compiled in (lender / top).rglob("__pycache__"):
                target = packages / compiled.relative_to(lender)
                target.mkdir(exist_ok=True)
                for file in compiled.iterdir():
                    with contextlib.suppress(OSError):
                        os.link(file, target / file.name)


@contextlib.contextmanager
def _partial(home: Path, key: str) -> Iterator[Path]:
    path = home / f".{key}-{os.getpid()}-{time.monotonic_ns()}"
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _remove_leftovers(home: Path) -> None:
    """Remove the temporary directories of processes that were interrupted."""
    for left in home.glob(".*-*-*"):
        with contextlib.suppress(OSError, ValueError):
            process = int(left.name.split("-")[1])
            if process != os.getpid() and not Path(f"/proc/{process}").exists():
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _key(pins: str) -> str:
    machine = f"{platform.python_version()} {platform.machine()} {sys.platform}\n"
    return hashlib.sha256((machine + pins).encode()).hexdigest()[:16]


def _link_to_harness() -> Path:
    """Return a directory that holds a link to `harness` and nothing else, so that no other package gets on the path."""
    directory = cache_directory() / "path" / hashlib.sha256(str(PACKAGE).encode()).hexdigest()[:12]
    link = directory / "harness"
    if not link.exists():
        directory.mkdir(parents=True, exist_ok=True)
        # Both sides of a gate may make it at the same time, in threads of one process.
        temporary = directory / f"harness-{os.getpid()}-{threading.get_ident()}"
        temporary.symlink_to(PACKAGE)
        temporary.replace(link)
    return directory
