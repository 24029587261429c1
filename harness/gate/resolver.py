"""Let uv choose the versions that requirements leave open, with the indexes that they and pip's settings name."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from harness.gate import pip_settings, unresolved, uv
from harness.gate.asked import Asked, name_of
from harness.gate.sources import Source, copied
from harness.gate.variables import Named

#: Options that a lock keeps, since its packages come from there.
_KEPT = ("--index-url", "--extra-index-url", "--find-links", "--no-index", "--trusted-host")

_TRUSTED = "--trusted-host"
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")

#: Name of the project in which packages are tied to an index.
_PROJECT = "tied-to-an-index"


def compiled(
    given: Asked,
    releases: Sequence[str],
    sources: Iterable[Source],
    build: Sequence[str],
    preferred: Mapping[str, str],
    added: Named = (),
) -> tuple[str, str]:
    """Return (what uv resolved, why it could not resolve it); one of them is empty.

    - given: what the user asked for: indexes, constraints, overrides, and the places that messages name.
    - releases: requirements that name a release: the user's, and those that are added.
    - sources: packages that are no releases.
    - build: packages that may be built from source.
    - preferred: package -> the version that is taken if the requirements allow it.
    - added: the variables of --env, for builds.
    """
    tied = [line for line in releases if name_of(line) in given.pinned]
    options = uv.only_wheels([*build, *(source.name for source in sources if source.builds)])
    with tempfile.TemporaryDirectory() as folder:
        names = ("requirements.in", "lock.txt", "constraints.txt", "overrides.txt", "pyproject.toml")
        source, lock, constraints, overrides, project = (Path(folder, name) for name in names)
        copies = [copied(made, Path(folder)) for made in sources]
        indexes = "".join(f"{line}\n" for line in _index_lines(given))
        others = [line for line in given.options if line.split(" ")[0] not in _KEPT]
        lines = [*others, *(line for line in releases if line not in tied), *map(str, copies)]
        source.write_text(index_lines(indexes) + "\n".join(lines) + "\n", encoding="utf-8")
        constraints.write_text("\n".join(given.constraints) + "\n", encoding="utf-8")
        # uv prefers the versions that it finds in its output file.
        lock.write_text("".join(f"{name}=={version}\n" for name, version in preferred.items()))
        words = [str(source), *([str(project)] if tied else []), "--output-file", str(lock)]
        words += ["--generate-hashes", "--no-header", "--no-annotate", "--python", sys.executable]
        words += ["--constraints", str(constraints), *options]
        # The indexes of a pyproject.toml are for uv: the first one that has a package is asked.
        words += index_words("\n".join(given.options))
        if given.overrides:
            overrides.write_text("\n".join(given.overrides) + "\n", encoding="utf-8")
            words += ["--overrides", str(overrides)]
        if given.prereleases:
            words += ["--prerelease", "allow"]
        if tied:
            project.write_text(_project(tied, given.pinned), encoding="utf-8")
        builds = bool(build) or any(made.builds for made in sources)
        done = uv.run(
            "pip",
            "compile",
            *words,
            builds=builds,
            added=[*added, *referred(" ".join(f"${{{name}}}" for name in given.variables))],
        )
        if done.returncode == 0:
            return lock.read_text(encoding="utf-8"), ""
        hidden = {
            str(source): "the requirements",
            str(constraints): "the constraints",
            str(project): "the requirements",
        }
        hidden |= {copy.url: made.url for copy, made in zip(copies, sources, strict=True) if copy.url != made.url}
        return "", unresolved.sentence(done.stderr, given, hidden)


def kept(given: Asked) -> str:
    """Return the lines of a lock that say which indexes its packages come from."""
    lines = _index_lines(given) + [f"--extra-index-url {url}" for url in dict.fromkeys(given.pinned.values())]
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))


def index_lines(lock: str) -> str:
    """Return the lines of a lock that say which indexes its packages come from, as uv takes them in a file.

    They are in a file, since others on this machine can read the words of a command, and addresses may hold passwords.
    """
    lines = [line for line in _options(lock) if not line.startswith(_TRUSTED)]
    lines += ["--no-index"] if pip_settings.no_index() and "--no-index" not in lines else []
    return "".join(f"{line}\n" for line in lines)


def index_words(lock: str) -> list[str]:
    """Return the words for uv that go with `index_lines`.

    pip takes the best release of all indexes, and uv that of the first index that has the package. A file that names more
    indexes is read as pip reads it. In a lock, hashes say which file is right.
    """
    lines = _options(lock)
    words = [
        word for line in lines if line.startswith(_TRUSTED) for word in ("--allow-insecure-host", line.split(" ")[1])
    ]
    if any(line.startswith("--extra-index-url") for line in lines) and not os.environ.get("UV_INDEX_STRATEGY"):
        words += ["--index-strategy", "unsafe-best-match"]
    return words


def referred(lines: str) -> list[tuple[str, str]]:
    """Return the variables that lines refer to as ${NAME}."""
    return [(name, os.environ[name]) for name in sorted(set(_VARIABLE.findall(lines))) if name in os.environ]


def _options(lock: str) -> list[str]:
    return re.findall(rf"^(?:{'|'.join(_KEPT)})(?: \S.*)?$", lock, re.MULTILINE)


def _index_lines(given: Asked) -> list[str]:
    """Return the indexes that all packages may come from, as lines of a requirements file."""
    lines = [line for line in given.options if line.split(" ")[0] in _KEPT]
    for index in given.indexes:
        if not index.explicit:
            lines.append(f"{'--index-url' if index.default else '--extra-index-url'} {index.url}")
    return lines


def _project(lines: Iterable[str], pinned: Mapping[str, str]) -> str:
    """Return a pyproject.toml that ties packages to an index each. A requirements file cannot say that."""
    lines = list(lines)
    urls = list(dict.fromkeys(pinned.values()))
    text = f'[project]\nname = "{_PROJECT}"\nversion = "0"\ndependencies = {json.dumps(lines)}\n'
    for number, url in enumerate(urls):
        text += f'[[tool.uv.index]]\nname = "index-{number}"\nurl = {json.dumps(url)}\nexplicit = true\n'
    text += "[tool.uv.sources]\n"
    for name in dict.fromkeys(filter(None, map(name_of, lines))):
        text += f'{name} = {{ index = "index-{urls.index(pinned[name])}" }}\n'
    return text
