"""Environments: stacks that uv installs from requirements, in a cache keyed by what they resolve to.

The pipeline of `make`:

1. `requirements.read` reads what the user asked for.
2. `resolve` adds what the suites need and lets uv choose versions. Packages that the user did not name keep the running
   environment's versions, as far as the requirements allow it.
3. `install` makes the environment in the cache, unless an equal one is there and whole (`installed.damage`).

The harness is not installed into an environment. `Environment.variables` puts it on the path, so that both sides of a gate
run the same code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness import compat
from harness.environment import STACK
from harness.errors import UsageError
from harness.gate import installed, locks, requirements, resolver, taken_along, unresolved, uv, variables
from harness.gate.requirements import BUILT, CURRENT, name_of
from harness.gate.sources import Source, copied
from harness.gate.variables import Named
from harness.paths import PACKAGE, USER_MODULES, cache_directory, keeping_bytecode
from harness.processes.parent_watch import OWNER
from harness.reading import shown

#: What the suites import, and what cases need that are skipped without it.
_NEEDED = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
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
    "tomli; python_version < '3.11'",
)

#: Optional packages that every environment gets, unless it is compared with a running one that lacks them.
ALWAYS = ("bitsandbytes", "optuna", "tensorboard")


@dataclass(frozen=True)
class Environment:
    """A stack that can be judged.

    - asked: the requirements as the user gave them.
    - python: path of its interpreter.
    - pins: distribution -> version, for all that is installed.
    - lock: a requirements file that makes it again, with hashes if it was resolved here.
    - key: equal for environments with the same distributions.
    - added: the variables of --env, for its processes.
    - lacks: optional packages that it was to have and cannot, each with the reason.
    """

    asked: str
    python: str
    pins: dict[str, str]
    lock: str
    key: str
    added: Named = ()
    lacks: tuple[tuple[str, str], ...] = ()

    @property
    def stack(self) -> dict[str, str]:
        """The installed packages of STACK, with their versions."""
        return {name: self.pins[name] for name in STACK if name in self.pins}

    def variables(self) -> dict[str, str]:
        """Return the environment variables for its processes: a few of the caller's own (`harness.gate.variables`).

        This harness is on PYTHONPATH. Processes look for the user's own subjects and --preload modules in the current
        directory of this one.
        """
        path = [str(_link_to_harness())]
        inherited = variables.for_stack(self.key, self.added, user_site=self.asked == CURRENT)
        # An environment that was made here has its bytecode inside.
        if self.asked != CURRENT:
            for name in ("PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE"):
                inherited.pop(name, None)
        if self.asked == CURRENT and os.environ.get("PYTHONPATH"):
            path.append(os.environ["PYTHONPATH"])
        users = os.environ.get(USER_MODULES) or os.getcwd()
        return keeping_bytecode(inherited) | {"PYTHONPATH": os.pathsep.join(path), USER_MODULES: users}

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run its Python with these arguments. Options are those of subprocess.run."""
        return subprocess.run([self.python, *arguments], env=self.variables(), text=True, check=False, **options)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start its Python with these arguments. Options are those of subprocess.Popen.

        Suites that it runs end when this process ends.
        """
        with_owner = self.variables() | {OWNER: str(os.getpid())}
        return subprocess.Popen([self.python, *arguments], env=with_owner, text=True, **options)


class Unresolvable(UsageError):
    """No environment can meet the requirements. The message has the resolver's own reason."""


class TooOld(UsageError):
    """The requirements make a stack that is older than what is judged."""


def make(
    asked: str,
    home: Path | None = None,
    build: Iterable[str] = (),
    added: Named = (),
    extras: Sequence[str] = ALWAYS,
) -> Environment:
    """Return the environment for requirements, and make it if it is not there yet.

    - asked: "current", a requirements or lock file, or words such as "transformers==5.1.0 peft==0.18.1".
    - home: the directory that holds environments; the cache by default.
    - build: packages that may be built from source. For others only wheels are installed.
    - added: the variables of --env, for the environment's processes and for builds.
    - extras: optional packages that it gets if it can have them. If it cannot, `Environment.lacks` says why.

    Raises Unresolvable if nothing meets the requirements, TooOld before anything is installed, and UsageError if the
    requirements cannot be read.
    """
    asked = asked.strip()
    if asked == CURRENT:
        if sentence := compat.too_old(running().pins):
            raise TooOld(f"{CURRENT}: {sentence}")
        return dataclasses.replace(running(), added=added)
    lock, lacks = _resolve_with(asked, build, added, extras)
    return dataclasses.replace(install(asked, lock, home, added), lacks=lacks)


def _resolve_with(
    asked: str, build: Iterable[str], added: Named, extras: Sequence[str]
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the lock with as many of the optional packages as go with the requirements, and why others do not."""
    lacks = {}
    if BUILT in extras and (why := _not_copied(asked)):
        lacks[BUILT] = why
    able = [name for name in extras if name not in lacks]
    try:
        return resolve(asked, build, added, able), tuple(lacks.items())
    except Unresolvable:
        if not able:
            raise
    lock = resolve(asked, build, added)  # raises if the requirements alone cannot be met
    having: list[str] = []
    for name in able:
        try:
            lock = resolve(asked, build, added, [*having, name])
            having.append(name)
        except Unresolvable as error:
            lacks[name] = str(error).partition(": ")[2]
    return lock, tuple(lacks.items())


def _not_copied(asked: str) -> str:
    """Say why the installed DeepSpeed cannot be taken along into a stack; "" if it can."""
    try:
        here = taken_along.of(BUILT)
    except UsageError as error:
        return str(error)
    for line in requirements.read(asked).releases:
        if name_of(line) == BUILT and not Requirement(line).specifier.contains(here.version, prereleases=True):
            return f"{line} has no wheel, and the installed {here.version} is another release"
    return ""


@functools.cache
def running() -> Environment:
    """Return the environment of this process."""
    pins: dict[str, str] = {}
    for found in importlib.metadata.distributions():
        if found.metadata["Name"]:
            # If two releases are on the path, Python imports the first.
            pins.setdefault(str(canonicalize_name(found.metadata["Name"])), found.version)
    lock = "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()) if name != "peft-harness")
    return Environment(CURRENT, sys.executable, pins, lock, locks.key(lock))


# ---- resolving ----


def resolve(asked: str, build: Iterable[str] = (), added: Named = (), extras: Iterable[str] = ()) -> str:
    """Return the lock for requirements: every distribution with its version and hashes, or where it comes from.

    Parameters as for `make`, but all of the extras must fit. Raises Unresolvable if no versions meet the requirements, and
    TooOld if those that do are older than what is judged.
    """
    given = requirements.read(asked)
    for line in [*given.releases, *given.constraints]:
        if sentence := compat.asks_for_too_old(line):
            raise TooOld(f"{given.place_of(line) or shown(asked)}: {sentence}")
    releases = [line for line in given.releases if name_of(line) != BUILT]
    sources = [source for source in given.sources if source.name != BUILT]
    build = sorted({*(str(canonicalize_name(name)) for name in build), *given.build} - {BUILT})
    copied_along = [taken_along.of(name) for name in extras if name == BUILT]
    optional = [name for name in extras if name != BUILT]
    optional += [line for copy in copied_along for line in copy.requires]
    needed = [line for line in (*_NEEDED, *optional) if name_of(line) not in given.names]
    # A version that is named or limited by the user is not the running one.
    free = {*(name_of(line) for line in given.constraints), *given.names}
    torch = running().pins.get("torch")
    if "torch" not in free and torch:
        needed = [f"torch=={torch.partition('+')[0]}" if line == "torch" else line for line in needed]
    preferred = {name: version for name, version in running().pins.items() if name not in free}
    resolved, reason = resolver.compiled(given, [*releases, *needed], sources, build, preferred, added)
    if reason:
        # A message that begins with the place of a line needs no more.
        placed = any(reason.startswith(place) for lines in given.places.values() for place, _ in lines)
        raise Unresolvable(reason if placed else f"{asked!r}: {reason}")
    if sentence := compat.too_old({entry.name: entry.version or None for entry in locks.entries(resolved)}):
        raise TooOld(f"{shown(asked)}: {sentence}")
    return (
        "".join(copy.line for copy in copied_along)
        + resolver.kept(given)
        + locks.completed(resolved, sources, given.hashes, build, functools.partial(unresolved.at, given))
    )


def _building(build: Iterable[str], sources: Iterable[Source]) -> list[str]:
    """Return uv's options: wheels only, but for what the user wants built."""
    return uv.only_wheels([*build, *(source.name for source in sources if source.builds)])


# ---- installing ----

_MISSING = "is not there"
_LOCK = ".lock"
_locks: dict[str, threading.Lock] = defaultdict(threading.Lock)


def install(asked: str, lock: str, home: Path | None = None, added: Named = ()) -> Environment:
    """Return the environment that a lock describes, and make it if it is not there yet or damaged.

    It is made in a temporary directory and then renamed, so that nobody sees half of it.
    """
    key = locks.key(lock)
    home = home or cache_directory() / "environments"
    directory = home / key
    pins = {entry.name: entry.version for entry in locks.entries(lock) if entry.version} | locks.copied(lock)
    # Both sides of a gate may ask for the same stack at the same time.
    with _locks[str(directory)]:
        _remove_leftovers(home)
        wrong = installed.damage(directory, pins) if os.path.lexists(directory) else _MISSING
        if wrong:
            if wrong != _MISSING:
                print(f"peft-harness: environment {key} is damaged and is made again: {wrong}", file=sys.stderr)
            _make_whole(asked, lock, directory, pins, added, wrong != _MISSING)
    # `peft-harness cache` shows by it when an environment was last used.
    with contextlib.suppress(OSError):
        os.utime(directory)
    pins = pins if all(entry.version for entry in locks.entries(lock)) else installed.versions(directory)
    return Environment(asked, str(directory / "bin" / "python"), pins, lock, key, tuple(added))


def _make_whole(asked: str, lock: str, directory: Path, pins: dict[str, str], added: Named, thorough: bool) -> None:
    """Make an environment beside its place, check it, and put it there. thorough: see `installed.record`."""
    home = directory.parent
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _partial(home, directory.name) as partial:
            _install(asked, lock, partial, added)
            if changed := installed.record(partial, thorough):
                # uv's own cache has changed files, and gave them out again. It fetches these packages anew.
                uv.run("cache", "clean", *changed)
                _remove(partial)
                _install(asked, lock, partial, added)
                installed.record(partial)
            _link_bytecode(partial, home)
            _put(partial, directory, pins)
    except OSError as error:
        raise UsageError(f"{home}: no environment can be made there ({error.strerror or error})") from None


def _put(partial: Path, directory: Path, pins: dict[str, str]) -> None:
    """Move a new environment to its place. A process that uses the damaged one finds the new one there.

    If another process was faster, its environment stays: it is equal, and somebody may use it already.
    """
    with contextlib.suppress(OSError):  # something is there
        partial.rename(directory)
        return
    if not installed.damage(directory, pins):
        return
    with _partial(directory.parent, directory.name) as aside:
        with contextlib.suppress(FileNotFoundError):
            directory.rename(aside)
        with contextlib.suppress(OSError):
            partial.rename(directory)
    if not os.path.lexists(directory / "bin" / "python"):
        raise UsageError(f"{directory}: the environment cannot be put there; remove what is in its place")


def _install(asked: str, lock: str, directory: Path, added: Named) -> None:
    # To check the hash of a local wheel, uv unpacks it again, which takes 13 s for torch. The lock was made from that
    # very wheel, so local wheels are installed without the check.
    entries, build = locks.entries(lock), locks.built(lock)
    sources = [
        source for entry in entries if entry.url for source in requirements.read(f"{entry.name} @ {entry.url}").sources
    ]
    local = [entry for entry in entries if entry.version and uv.is_local_wheel(entry.name, entry.version)]
    others = [entry for entry in entries if entry.version and entry not in local]
    python = str(directory / "bin" / "python")
    options = ["--python", python, *_building(build, sources), *resolver.index_words(lock)]
    with tempfile.TemporaryDirectory() as folder:
        checked, unchecked = Path(folder, "checked.txt"), Path(folder, "unchecked.txt")
        indexes = resolver.index_lines(lock)
        checked.write_text("".join([indexes, *(entry.text for entry in others)]), encoding="utf-8")
        copies = {source.name: copied(source, Path(folder)) for source in sources if source.folder}
        folders = {name: f"{copy}\n" for name, copy in copies.items()}
        lines = [
            folders.get(entry.name, entry.text) if entry.url else f"{entry.identity}\n"
            for entry in entries
            if entry not in others
        ]
        unchecked.write_text("".join([indexes, *lines]), encoding="utf-8")
        hashes = ["--require-hashes"] if all(entry.hashes for entry in others) else []
        commands = [(["venv", "--relocatable", "--python", sys.executable, str(directory)], False)]
        if others:
            commands.append((["pip", "sync", *hashes, *options, str(checked)], bool(build)))
        if lines:
            builds = bool(build) or any(source.builds for source in sources)
            commands.append((["pip", "install", "--no-deps", *options, "-r", str(unchecked)], builds))
        for name in locks.copied(lock):
            copy = taken_along.of(name)
            if copy.line not in lock:
                raise UsageError(f"{name}: its installed files have changed since the stack was resolved; try again")
            wheel = str(copy.wheel(Path(folder)))
            commands.append((["pip", "install", "--no-deps", "--no-index", "--python", python, wheel], False))
        for words, builds in commands:
            done = uv.run(*words, builds=builds, added=[*added, *resolver.referred(indexes)])
            if done.returncode != 0:
                hidden = {str(file): "the requirements" for file in (checked, unchecked)}
                hidden |= {copies[made.name].url: made.url for made in sources if made.name in copies}
                reason = unresolved.sentence(done.stderr, hidden=hidden)
                raise Unresolvable(f"{asked!r}: resolved, but cannot be installed: {reason}")


def _link_bytecode(directory: Path, home: Path) -> None:
    """Link the bytecode that other environments have of the same distributions.

    Without it the first import of torch alone takes 8 s. uv links the same source files into every environment, so their
    times are equal and Python accepts the bytecode. If it does not, it compiles again.
    """
    (packages,) = directory.glob("lib/python*/site-packages")
    lenders = [
        other for other in home.glob("[!.]*/lib/python*/site-packages") if other.parent.name == packages.parent.name
    ]
    for metadata in packages.glob("*.dist-info"):
        lender = next((other for other in lenders if (other / metadata.name).is_dir()), None)
        if lender is None:
            continue
        for top in {line.split("/")[0] for line in (metadata / "RECORD").read_text().splitlines() if ".py," in line}:
            # Another process may remove the lender at any moment.
            with contextlib.suppress(OSError):
                for compiled in (lender / top).rglob("__pycache__"):
                    target = packages / compiled.relative_to(lender)
                    target.mkdir(exist_ok=True)
                    for file in compiled.iterdir():
                        with contextlib.suppress(OSError):
                            os.link(file, target / file.name)


@contextlib.contextmanager
def _partial(home: Path, key: str) -> Iterator[Path]:
    path = home / f".{key}-{os.getpid()}-{time.monotonic_ns()}"
    # Its lock says that it is being made. A process id would not: containers that share the cache have their own.
    with FileLock(f"{path}{_LOCK}"):
        try:
            yield path
        finally:
            _remove(path)
            _remove(Path(f"{path}{_LOCK}"))


def _remove_leftovers(home: Path) -> None:
    """Remove the temporary directories whose makers were interrupted: nobody holds their locks."""
    for lock in home.glob(f".*-*-*{_LOCK}"):
        # Taken by another process: it is being made, or being removed.
        with contextlib.suppress(OSError), FileLock(lock, timeout=0):
            _remove(lock.with_name(lock.name.removesuffix(_LOCK)))
            _remove(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
