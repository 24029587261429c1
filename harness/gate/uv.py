"""Run uv, which resolves requirements and makes environments."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from harness import environment
from harness.errors import UsageError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run uv with these arguments and return its output. Raises UsageError if uv is not installed."""
    return subprocess.run(
        [*_command(), *arguments, "--quiet"], env=_variables(), capture_output=True, text=True, check=False
    )


def reason(error: str, file: str) -> str:
    """Return uv's error as one line: without its drawing characters, and without the name of a temporary file."""
    text = re.sub(r"[×╰─▶│├└]", " ", error.replace(file, "the requirements"))
    return re.sub(r"\s+", " ", text).strip() or "uv gave no reason"


def index_url() -> str | None:
    """Return the package index that uv is configured to use. None if it uses its default."""
    variables = _variables()
    return variables.get("UV_DEFAULT_INDEX") or variables.get("UV_INDEX_URL")


def is_local_wheel(name: str, version: str) -> bool:
    """Return whether a local directory among uv's find-links holds a wheel of this release that fits this machine."""
    usable = set(sys_tags())
    for link in _variables().get("UV_FIND_LINKS", "").split(","):
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
def _variables() -> dict[str, str]:
    """Return the environment variables for uv. They name the package sources of pip, whose configuration uv ignores."""
    variables = dict(os.environ)
    for variable, names in {
        "UV_FIND_LINKS": ("PIP_FIND_LINKS", "find-links"),
        "UV_DEFAULT_INDEX": ("PIP_INDEX_URL", "index-url"),
    }.items():
        value = variables.get(variable) or variables.get(names[0]) or _pip_setting(names[1])
        if value:
            variables[variable] = ",".join(value.split()) if "LINKS" in variable else value
    build = (environment.version("torch") or "").partition("+")[2]
    # The default index has no builds of torch with a label such as +cpu. uv knows the index that has them.
    if build and not variables.get("UV_FIND_LINKS"):
        variables.setdefault("UV_TORCH_BACKEND", build)
    return variables


def _pip_setting(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", f"global.{name}"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else ""
