"""Run uv, which resolves requirements and makes environments."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from harness import environment
from harness.errors import UsageError
from harness.gate import pip_settings, variables
from harness.gate.variables import Named

#: Variables of uv that others of this module look up.
_NAMED = ("UV_FIND_LINKS", "UV_DEFAULT_INDEX")


def run(*arguments: str, builds: bool = False, added: Named = ()) -> subprocess.CompletedProcess[str]:
    """Run uv with these arguments and return its output. Raises UsageError if uv is not installed.

    - builds: whether it may run the code of packages, to build them.
    - added: the variables of --env.
    """
    inherited = variables.for_uv(builds, added) | _sources()
    with _indexes(inherited) if builds else contextlib.nullcontext(()) as configuration:
        return subprocess.run(
            [*_command(), *arguments, *configuration, "--quiet"],
            env=inherited, capture_output=True, text=True, errors="replace", check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def only_wheels(build: Iterable[str]) -> list[str]:
    """Return uv's options for installing wheels only, except for packages that the user wants built."""
    return ["--only-binary", ":all:", *(word for name in build for word in ("--no-binary", name))]


@contextlib.contextmanager
def _indexes(inherited: dict[str, str]) -> Iterator[Sequence[str]]:
    """Take the indexes out of uv's variables if they have passwords, and yield the option that names them in a file.

    A package that is built inherits uv's variables. The file has the mode 600.
    """
    named = {name: os.environ[name] for name in os.environ if variables.matches(name, variables.INDEXES)}
    named |= {name: inherited.pop(name) for name in list(inherited) if variables.matches(name, variables.INDEXES)}
    if not named:
        yield ()
        return
    strategy = named.pop("UV_INDEX_STRATEGY", "")
    lines = [f"index-strategy = {json.dumps(strategy)}"] if strategy else []
    words = [(word, True) for word in named.get("UV_DEFAULT_INDEX", named.get("UV_INDEX_URL", "")).split()]
    words += [(word, False) for word in f"{named.get('UV_INDEX', '')} {named.get('UV_EXTRA_INDEX_URL', '')}".split()]
    for word, default in words:
        label, url = word.split("=", 1) if re.match(r"[A-Za-z0-9._-]+=", word) else ("", word)
        label_in_variables = re.sub(r"[^A-Za-z0-9]", "_", label).upper()
        user, password = (named.get(f"UV_INDEX_{label_in_variables}_{what}", "") for what in ("USERNAME", "PASSWORD"))
        if user or password:
            parts = urlsplit(url)
            url = parts._replace(netloc=f"{quote(user, '')}:{quote(password, '')}@{parts.netloc}").geturl()
        lines += ["[[index]]", f"url = {json.dumps(url)}", f"default = {json.dumps(default)}"]
        lines += [f"name = {json.dumps(label)}"] if label else []
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "uv.toml")
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield ("--config-file", str(file))


def index_url() -> str | None:
    """Return the package index that uv is configured to use. None if it uses its default."""
    return _sources().get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL")


def is_local_wheel(name: str, version: str) -> bool:
    """Return whether a local directory among uv's find-links holds a wheel of this release that fits this machine."""
    usable = set(sys_tags())
    for link in _sources().get("UV_FIND_LINKS", "").split(","):
        for wheel in Path(link).glob("*.whl") if link and Path(link).is_dir() else ():
            with contextlib.suppress(InvalidWheelFilename):
                its_name, its_version, _, tags = parse_wheel_filename(wheel.name)
                if its_name == name and str(its_version) == version and usable & tags:
                    return True
    return False


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
def _sources() -> dict[str, str]:
    """Return variables of uv that name the package sources of pip, whose configuration uv ignores."""
    found = {name: os.environ[name] for name in _NAMED if os.environ.get(name)} | pip_settings.for_uv()
    build = (environment.version("torch") or "").partition("+")[2]
    # The default index has no builds of torch with a label such as +cpu. uv knows the index that has them.
    if build and "UV_FIND_LINKS" not in found and "UV_TORCH_BACKEND" not in os.environ:
        found["UV_TORCH_BACKEND"] = build
    return found
