"""The entries of the cache directory: what each is, its size, whether a process uses it, and how it is removed.

Only files whose names and places the harness gives are entries. If PEFT_HARNESS_CACHE names a directory that holds other
things, these are neither counted nor removed.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.paths import CACHE, TAG
from harness.reading import read_json

#: Commands of the harness that read the whole cache while they run, or start processes that do.
_READERS = ("gate", "bisect", "history", "check", "train", "map", "propose", "bounds", "ask")

#: Seconds for which an unfinished directory may still be written by a process on another machine or in a container.
_UNFINISHED = 3600


@dataclass(frozen=True)
class Kind:
    """A kind of entry.

    - name: as the command line has it.
    - what: what entries of it are, for people.
    - pattern: the paths of its entries below the cache directory, as a regular expression.
    """

    name: str
    what: str
    pattern: str


KINDS = (
    Kind("environments", "stacks that check --with, gate, bisect and history installed", r"environments/[0-9a-f]{16}"),
    Kind("judged", "results of whole stacks, for later gates with the same baseline", r"judged/[0-9a-f]{16}\.jsonl"),
    Kind("verdicts", "results of single clauses, for later bisections", r"verdicts/[0-9a-f]{16}-[\w-]+\.json"),
    Kind("homes", "home directories of the stacks' processes", r"homes/([0-9a-f]{16}|builds)"),
    Kind("path", "links through which other stacks import this harness", r"path/[0-9a-f]{12}"),
    Kind("bytecode", "compiled Python of upstream", r"bytecode"),
    Kind("inductor", "what torch.compile has compiled", r"inductor"),
    Kind("model", "SmolLM2-135M-Instruct in float32, for train", r"smollm2-[\w.-]+"),
    Kind(
        "unfinished",
        "left by processes that were interrupted",
        r"environments/\.[0-9a-f]{16}-\d+-\d+(\.lock)?|(judged|verdicts)/\.[\w.-]+\.\d+(-\d+)?|\.smollm2-[\w.-]+",
    ),
)


#: The folders of the cache directory that hold entries.
_FOLDERS = ("environments", "judged", "verdicts", "homes", "path")


@dataclass(frozen=True)
class Entry:
    """An entry of the cache.

    - text: what it is: the releases in an environment, the date of a result.
    - size: bytes on disk, files with several hard links counted once.
    - freed: bytes that removing it frees. uv shares files between environments and its own cache.
    - used_at: when it was last used or written, in seconds since 1970.
    - user: what uses it now, "" if nothing does.
    """

    kind: str
    path: Path
    text: str
    size: int
    freed: int
    used_at: float
    user: str


def entries(directory: Path) -> list[Entry]:
    """Return the entries of a cache directory, sorted by kind and then the largest first."""
    running = list(_processes(directory))
    found = [
        _entry(kind, path, running)
        for path in _candidates(directory)
        for kind in KINDS
        if re.fullmatch(kind.pattern, path.relative_to(directory).as_posix())
    ]
    order = [kind.name for kind in KINDS]
    return sorted(found, key=lambda entry: (order.index(entry.kind), -entry.size, entry.path.name))


def strangers(directory: Path) -> list[Path]:
    """Return what else lies in the directory. The harness did not put it there, and leaves it alone."""
    patterns = [kind.pattern for kind in KINDS]
    return [
        path
        for path in _candidates(directory)
        if path not in {directory / name for name in (*_FOLDERS, TAG)}
        and not any(re.fullmatch(pattern, path.relative_to(directory).as_posix()) for pattern in patterns)
    ]


def remove(entry: Entry) -> None:
    """Remove an entry, without following links out of it.

    A directory is renamed first, so that no process finds half of it. If this process is killed meanwhile, the rest is
    an "unfinished" entry.
    """
    if entry.path.is_symlink() or not entry.path.is_dir():
        entry.path.unlink(missing_ok=True)
    elif entry.kind == "bytecode":
        _remove_bytecode(entry.path)
    elif entry.kind == "environments":
        aside = entry.path.with_name(f".{entry.path.name}-{os.getpid()}-{time.monotonic_ns()}")
        entry.path.rename(aside)
        shutil.rmtree(aside)
    else:
        shutil.rmtree(entry.path)


def _candidates(directory: Path) -> Iterator[Path]:
    """Yield what may be an entry: what lies in the cache directory, and in those folders of it that hold entries."""
    for path in sorted(_listed(directory)):
        yield path
        if path.name in _FOLDERS and path.is_dir() and not path.is_symlink():
            yield from sorted(_listed(path))


def _entry(kind: Kind, path: Path, running: Sequence[tuple[int, str, bool]]) -> Entry:
    files = list(_files(path))
    links: dict[tuple[int, int], int] = {}
    stats = {}
    for file in files:
        try:
            found = file.lstat()
        except OSError:  # removed meanwhile
            continue
        key = (found.st_dev, found.st_ino)
        links[key] = links.get(key, 0) + 1
        stats[key] = found
    sizes = {key: found.st_blocks * 512 for key, found in stats.items()}
    freed = sum(size for key, size in sizes.items() if links[key] >= stats[key].st_nlink)
    used_at = _used_at(path)
    return Entry(
        kind.name, path, _text(kind, path, used_at), sum(sizes.values()), freed, used_at, _user(kind, path, running)
    )


def _used_at(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0


def _files(path: Path) -> Iterator[Path]:
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in names)


def _text(kind: Kind, path: Path, used_at: float) -> str:
    if kind.name == "environments":
        return _stack(path)
    if kind.name == "path":
        link = path / "harness"
        return f"{os.readlink(link)}" if link.is_symlink() else ""
    day = time.strftime("%Y-%m-%d", time.localtime(used_at))
    return f"{_clause(path)} {day}".strip() if kind.name == "verdicts" else day


def _clause(verdicts: Path) -> str:
    """Return the clause that a file of verdicts is about, "" if it cannot be read."""
    try:
        return str(read_json(verdicts)[0]["clause"])
    except (UsageError, LookupError, TypeError):
        return ""


def _stack(environment: Path) -> str:
    """Return the releases that an environment holds of the packages that a verdict is about."""
    from harness.environment import STACK

    found = {}
    for info in environment.glob("lib/python*/site-packages/*.dist-info"):
        name, _, version = info.name.removesuffix(".dist-info").partition("-")
        found[name.lower()] = version
    return " ".join(f"{name}=={found[name]}" for name in STACK if name in found)


# ---- who uses it ----


def _processes(cache: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield (process id, text that names every path it uses, whether it may read all of the cache) of each other process.

    The text has the command line, the directory, the Python variables and the mapped and open files. Processes of other
    users show their command line alone.
    """
    for directory in Path("/proc").glob("[0-9]*"):
        if int(directory.name) == os.getpid():
            continue
        words = _read(directory / "cmdline").split("\0")
        variables = dict(line.partition("=")[::2] for line in _read(directory / "environ").split("\0"))
        python = [variables.get(name, "") for name in ("PYTHONPATH", "PYTHONPYCACHEPREFIX", "VIRTUAL_ENV")]
        links = [_target(link) for link in (directory / "cwd", *_listed(directory / "fd"))]
        text = "\n".join([*words, *python, _read(directory / "maps"), *links])
        yield int(directory.name), text, _is_reader(words) and _shares(variables, cache)


def _is_reader(words: Sequence[str]) -> bool:
    ours = any(Path(word).name == "peft-harness" or word == "harness.cli" for word in words[:5])
    return ours and any(word in _READERS for word in words[1:6])


def _shares(variables: dict[str, str], cache: Path) -> bool:
    """Return whether a process with these environment variables uses this cache. One that cannot be read may."""
    chosen = variables.get(CACHE) or f"{variables.get('HOME', '')}/.cache/peft-harness"
    try:
        return "HOME" not in variables or Path(chosen).resolve() == cache.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return True


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _user(kind: Kind, path: Path, running: Sequence[tuple[int, str, bool]]) -> str:
    """Return what uses an entry, in words; "" if nothing does."""
    if kind.name == "unfinished":
        # Named by `harness.gate.environments` and by `harness.files.write_whole`.
        owner = re.fullmatch(r"\.[0-9a-f]{16}-(?P<pid>\d+)-.*|\.smollm2.*|\..*\.(?P<last>\d+)(-\d+)?", path.name)
        pid = owner and (owner["pid"] or owner["last"])
        if pid and Path("/proc", pid).exists():
            return f"process {pid} writes it"
        # The model's unfinished directory has no process id in its name (fixtures/smollm2.py).
        if not pid and time.time() - _used_at(path) < _UNFINISHED:
            return "written less than an hour ago"
    for pid, text, reads_all in running:
        if reads_all or re.search(re.escape(str(path)) + r"(?![\w.-])", text):
            return f"process {pid} uses it"
    return ""


def _remove_bytecode(path: Path) -> None:
    """Remove compiled files and the folders that are empty then, and nothing else."""
    for folder, _, names in os.walk(path, topdown=False):
        for name in names:
            if name.endswith(".pyc"):
                Path(folder, name).unlink(missing_ok=True)
        if not os.listdir(folder):
            os.rmdir(folder)
