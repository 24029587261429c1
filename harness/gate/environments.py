"""Environments: stacks made by uv from requirements, in a cache keyed by what was resolved.

An environment holds the stack and what the harness needs to judge it; the harness itself is not installed in it but put on
its path, so that both sides of a gate run this very code. What the requirements do not name stays at the running
environment's versions as far as they allow it.
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

from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from harness.errors import UsageError
from harness.paths import PACKAGE, cache_directory, keeping_bytecode
from harness.processes.parent_watch import OWNER

CURRENT = "current"

#: Never installed: it is built against a torch that is there already, and each environment would compile its extensions.
LEFT_OUT = "deepspeed"

#: What the suites import, or need for cases that are skipped without it.
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

#: The packages whose releases a verdict is about, in the order in which they are told.
STACK = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")


@dataclass(frozen=True)
class Environment:
    """A stack that can be judged.

    asked: the requirements as they were given. python: its interpreter. pins: distribution -> version, of all that it
    holds. lock: a requirements file that makes it again, with hashes where it was resolved here. key: equal for
    environments with the same distributions.
    """

    asked: str
    python: str
    pins: dict[str, str]
    lock: str
    key: str

    @property
    def stack(self) -> dict[str, str]:
        """The packages of STACK that it holds, with their versions."""
        return {name: self.pins[name] for name in STACK if name in self.pins}

    def variables(self) -> dict[str, str]:
        """The environment variables of a process in it: this harness is on the path, whatever else is installed."""
        # The caller's directory is where its own subjects and --preload modules are.
        path = [str(_link_to_harness()), os.getcwd()]
        left_out = ["PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"]
        # An environment that was made here keeps its bytecode inside.
        if self.asked != CURRENT:
            left_out += ["PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE"]
        if self.asked == CURRENT and os.environ.get("PYTHONPATH"):
            path.append(os.environ["PYTHONPATH"])
        kept = {name: value for name, value in os.environ.items() if name not in left_out}
        return keeping_bytecode(kept) | {"PYTHONPATH": os.pathsep.join(path)}

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run its Python with arguments, as subprocess.run does."""
        return subprocess.run([self.python, *arguments], env=self.variables(), text=True, check=False, **options)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start its Python with arguments, as subprocess.Popen does; suites that it judges end with this process."""
        variables = self.variables() | {OWNER: str(os.getpid())}
        return subprocess.Popen([self.python, *arguments], env=variables, text=True, **options)


class Unresolvable(UsageError):
    """No environment meets the requirements; the message has the resolver's own sentence."""


def make(requirements: str, home: Path | None = None) -> Environment:
    """The environment for requirements: "current", a requirements or lock file, or "transformers==5.1.0 peft==0.18.1".

    Made in `home` (default: the cache) unless it is there already. Unresolvable where nothing meets the requirements,
    UsageError where they cannot be read.
    """
    asked = requirements.strip()
    if asked == CURRENT:
        return running()
    return install(asked, resolve(asked), home)


@functools.cache
def running() -> Environment:
    """The environment of this process."""
    pins: dict[str, str] = {}
    for found in importlib.metadata.distributions():
        if found.metadata["Name"]:
            # Where two releases are on the path, the first is what is imported.
            pins.setdefault(str(canonicalize_name(found.metadata["Name"])), found.version)
    lock = "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()) if name != "peft-harness")
    return Environment(CURRENT, sys.executable, pins, lock, _key(lock))


def named(asked: str) -> list[str]:
    """The packages that requirements name."""
    return [name for line in _lines(asked) if (name := _name(line))]


# ---- resolving ----


def resolve(asked: str) -> str:
    """The lock for requirements: every distribution with its version and hashes. Unresolvable where there is none."""
    given = [line for line in _lines(asked) if _name(line) != LEFT_OUT]
    named = {name for line in given if (name := _name(line))}
    ours = [line for line in _NEEDED if _name(line) not in named]
    torch = running().pins.get("torch")
    if "torch" not in named and torch:
        ours = [f"torch=={torch.partition('+')[0]}" if line == "torch" else line for line in ours]
    with tempfile.TemporaryDirectory() as folder:
        wanted, lock = Path(folder, "requirements.in"), Path(folder, "lock.txt")
        wanted.write_text("\n".join([*given, *ours]) + "\n")
        # uv keeps to the versions that it finds in the file that it is to write, where it can.
        kept = {name: version for name, version in running().pins.items() if name not in named}
        lock.write_text("".join(f"{name}=={version}\n" for name, version in kept.items()))
        options = ["--generate-hashes", "--no-header", "--no-annotate", "--python", sys.executable]
        done = _uv("pip", "compile", str(wanted), "--output-file", str(lock), *options)
        if done.returncode != 0:
            raise Unresolvable(f"{asked!r}: {_sentence(done.stderr, str(wanted))}")
        return lock.read_text()


def _is_local(name: str, version: str) -> bool:
    """Whether a distribution is a wheel on this disk, among the find-links."""
    usable = set(sys_tags())
    for place in _uv_variables().get("UV_FIND_LINKS", "").split(","):
        for wheel in Path(place).glob("*.whl") if place and Path(place).is_dir() else ():
            with contextlib.suppress(InvalidWheelFilename):
                its_name, its_version, _, tags = parse_wheel_filename(wheel.name)
                if its_name == name and str(its_version) == version and usable & tags:
                    return True
    return False


def _lines(asked: str) -> list[str]:
    """Requirements, one a line, from a file or from words."""
    if not asked:
        raise UsageError("no requirements given; name a file, 'current', or requirements such as 'transformers==5.1.0'")
    file = Path(asked)
    if file.is_file():
        return _read(file)
    lines: list[str] = []
    for word in (word.rstrip(",") for word in asked.split()):
        if Path(word).is_file():
            lines += _read(Path(word))
            continue
        if word.endswith((".txt", ".lock", ".in")):
            raise UsageError(f"{word}: no such requirements file")
        try:
            Requirement(word)
        except InvalidRequirement as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"requirements {asked!r}: {word!r} is none ({reason}); write them like 'transformers==5.1.0 peft==0.18.1'"
            ) from None
        lines.append(word)
    return lines


def _read(file: Path) -> list[str]:
    """A requirements file's lines, files that it includes read in, continued lines joined."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read as a requirements file ({error})") from None
    lines: list[str] = []
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        included = re.match(r"(?:-r|--requirement)[ =]+(.+)$", line)
        if included:
            lines += _read(file.parent / included[1].strip())
        elif line:
            lines.append(line)
    return lines


def _name(line: str) -> str | None:
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
    return canonicalize_name(found[0]) if found else None


def _sentence(error: str, file: str) -> str:
    """What uv says, without its drawing and its names of temporary files."""
    text = re.sub(r"[×╰─▶│├└]", " ", error.replace(file, "the requirements"))
    return re.sub(r"\s+", " ", text).strip() or "uv gave no reason"


# ---- installing ----


def install(asked: str, lock: str, home: Path | None = None) -> Environment:
    """The environment that a lock describes, made in a directory of its own and then renamed: it is there whole or not."""
    pins = {
        str(canonicalize_name(match[1])): match[2]
        for match in re.finditer(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", lock, re.MULTILINE)
    }
    key = _key("".join(f"{name}=={version}\n" for name, version in sorted(pins.items())))
    home = home or cache_directory() / "environments"
    place = home / key
    python = place / "bin" / "python"
    if not python.is_file():
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        with _partial(home, key) as partial:
            _install(asked, lock, partial)
            _lend_bytecode(partial, home)
            # Where another process was faster, its environment is as good as this one.
            with contextlib.suppress(OSError):
                partial.rename(place)
    return Environment(asked, str(python), pins, lock, key)


def _install(asked: str, lock: str, place: Path) -> None:
    # To check the hash of a wheel of this disk uv unpacks it anew, which takes 13 s for torch; it was hashed when locked.
    entries = re.findall(r"^\S+==\S+(?:.*\\\n)*.*\n", lock, re.MULTILINE)
    local = [entry for entry in entries if _is_local(*entry.split()[0].split("=="))]
    others = [entry for entry in entries if entry not in local]
    rest, python = place.with_suffix(".lock"), str(place / "bin" / "python")
    rest.write_text("".join(others))
    checked = ["--require-hashes"] if all("--hash" in entry for entry in others) else []
    commands = [
        ["venv", "--relocatable", "--python", sys.executable, str(place)],
        ["pip", "sync", *checked, "--python", python, str(rest)],
        *(
            [["pip", "install", "--no-deps", "--python", python, *(entry.split()[0] for entry in local)]]
            if local
            else []
        ),
    ]
    try:
        for words in commands:
            done = _uv(*words)
            if done.returncode != 0:
                raise Unresolvable(f"{asked!r}: resolved, but cannot be installed: {_sentence(done.stderr, str(rest))}")
    finally:
        rest.unlink()


def _lend_bytecode(place: Path, home: Path) -> None:
    """Link what other environments have compiled of the same distributions: torch alone takes 8 s at the first import.

    uv links the same source files into every environment, so that Python, which compares times, takes the bytecode for
    theirs. Where it does not it compiles anew.
    """
    (packages,) = place.glob("lib/python*/site-packages")
    lenders = [
        other for other in home.glob("[!.]*/lib/python*/site-packages") if other.parent.name == packages.parent.name
    ]
    for installed in packages.glob("*.dist-info"):
        lender = next((one for one in lenders if (one / installed.name).is_dir()), None)
        if lender is None:
            continue
        for top in {line.split("/")[0] for line in (installed / "RECORD").read_text().splitlines() if ".py," in line}:
            for compiled in (lender / top).rglob("__pycache__"):
                there = packages / compiled.relative_to(lender)
                there.mkdir(exist_ok=True)
                for file in compiled.iterdir():
                    with contextlib.suppress(OSError):
                        os.link(file, there / file.name)


@contextlib.contextmanager
def _partial(home: Path, key: str) -> Iterator[Path]:
    path = home / f".{key}-{os.getpid()}-{time.monotonic_ns()}"
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _sweep(home: Path) -> None:
    """Take away what interrupted processes left behind."""
    for left in home.glob(".*-*-*"):
        with contextlib.suppress(OSError, ValueError):
            process = int(left.name.split("-")[1])
            if process != os.getpid() and not Path(f"/proc/{process}").exists():
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _key(pins: str) -> str:
    where = f"{platform.python_version()} {platform.machine()} {sys.platform}\n"
    return hashlib.sha256((where + pins).encode()).hexdigest()[:16]


def _link_to_harness() -> Path:
    """A directory with nothing in it but `harness`: on the path of an environment, it brings no other package along."""
    place = cache_directory() / "path" / hashlib.sha256(str(PACKAGE).encode()).hexdigest()[:12]
    link = place / "harness"
    if not link.exists():
        place.mkdir(parents=True, exist_ok=True)
        # Both sides of a gate may be the first, in threads of one process.
        made = place / f"harness-{os.getpid()}-{threading.get_ident()}"
        made.symlink_to(PACKAGE)
        made.replace(link)
    return place


# ---- uv ----


def _uv(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_command(), *arguments, "--quiet"], env=_uv_variables(), capture_output=True, text=True, check=False
    )


@functools.cache
def _command() -> tuple[str, ...]:
    try:
        from uv import find_uv_bin

        return (find_uv_bin(),)
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
    if found is None:
        raise UsageError("uv, which makes environments, is not installed here; pip install uv")
    return (found,)


@functools.cache
def _uv_variables() -> dict[str, str]:
    """What uv is told through its environment: where pip looks for packages, which uv does not ask."""
    told = dict(os.environ)
    for variable, names in {
        "UV_FIND_LINKS": ("PIP_FIND_LINKS", "find-links"),
        "UV_DEFAULT_INDEX": ("PIP_INDEX_URL", "index-url"),
    }.items():
        value = told.get(variable) or told.get(names[0]) or _pip_setting(names[1])
        if value:
            told[variable] = ",".join(value.split()) if "LINKS" in variable else value
    build = (running().pins.get("torch") or "").partition("+")[2]
    # Of a build of torch that the default index does not have, uv knows the index.
    if build and not told.get("UV_FIND_LINKS"):
        told.setdefault("UV_TORCH_BACKEND", build)
    return told


def index_url() -> str | None:
    """The package index that uv was told to ask; None where it asks the usual one."""
    told = _uv_variables()
    return told.get("UV_DEFAULT_INDEX") or told.get("UV_INDEX_URL")


def _pip_setting(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", f"global.{name}"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""
