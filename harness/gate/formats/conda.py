"""environment.yml of conda: its pip part. What conda itself would install is named, and not installed."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

from harness.brought.settings_files import parse_yaml
from harness.errors import UsageError
from harness.gate.asked import Asked
from harness.gate.formats.common import Chosen, line_of, no_choice
from harness.gate.formats.pip_file import Include, read_line
from harness.reading import shown, shown_path

#: Names of conda packages that have another name on PyPI.
_ON_PYPI = {"pytorch": "torch", "pytorch-cpu": "torch", "pytorch-gpu": "torch"}

#: Packages of the stack: one that conda pins is judged at another version.
_STACK = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")


def read(file: Path, text: str, chosen: Chosen, found: Asked, include: Include) -> None:
    """Add the pip part of an environment.yml, and a note about the packages that only conda installs."""
    no_choice(file, chosen)
    data = parse_yaml(text, shown_path(file))
    listed = data.get("dependencies") if isinstance(data, dict) else None
    if not isinstance(listed, list):
        raise UsageError(
            f"{shown_path(file)}: is no environment.yml of conda (it has no list of dependencies); write one requirement a "
            "line into a .txt file"
        )
    of_conda = [entry for entry in listed if isinstance(entry, str)]
    lines: list[Any] = []
    for entry in listed:
        if isinstance(entry, dict) and isinstance(entry.get("pip"), list):
            lines += entry["pip"]
        elif not isinstance(entry, str):
            raise UsageError(
                f"{shown_path(file)}: has {shown(entry)} among its dependencies; write a package or a pip part"
            )
    if not all(isinstance(line, str) for line in lines):
        raise UsageError(f"{shown_path(file)}: its pip part is no list of strings; write one requirement a line")
    same = " ".join(filter(None, (_as_requirement(entry) for entry in of_conda)))
    advice = f"; name the packages by their names on PyPI: {shown(same, 400)}" if same else "; name a requirements file"
    if not lines:
        raise UsageError(f"{shown_path(file)}: has no pip part, and packages of conda are not installed here{advice}")
    for line in lines:
        read_line(line, file.parent, f"{shown_path(file)}{line_of(text, line)}", found, include)
    left_out = [entry for entry in of_conda if _name(entry) not in ("pip", "python")]
    if left_out:
        stack = " ".join(filter(None, (_as_requirement(one) for one in left_out if _on_pypi(one) in _STACK)))
        more = (
            f"; to judge those of the stack, name them as well: {shown(f'{file.name} {stack}', 400)}" if stack else ""
        )
        names = ", ".join(sorted({_name(one) for one in left_out}))
        found.notes.append(f"{shown_path(file)}: packages of conda are not installed: {shown_path(names)}{more}")
    _note_python(file, of_conda, found)


def _name(entry: str) -> str:
    """Return the name in a specification such as "conda-forge::numpy>=1.26"."""
    return re.split(r"[\s=<>!~\[]", entry.rpartition("::")[2].strip(), maxsplit=1)[0].lower()


def _on_pypi(entry: str) -> str:
    return _ON_PYPI.get(_name(entry), _name(entry))


def _as_requirement(entry: str) -> str:
    """Return a package of conda as a requirement of pip: "numpy=1.26=py311_0" is "numpy==1.26.*". Empty for Python."""
    name = _name(entry)
    rest = re.sub(r"\s+", "", entry.rpartition("::")[2].strip()[len(name) :])
    if name in ("pip", "python") or not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        return ""
    if exact := re.fullmatch(r"==?([\w.!+]+)(=.*)?", rest):
        starts = rest[1] != "=" and exact[2] is None and exact[1].count(".") < 2
        return f"{_on_pypi(entry)}=={exact[1]}" + (".*" if starts else "")
    return _on_pypi(entry) + (rest if re.fullmatch(r"([<>!~]=?[\w.*]+,?)+", rest) else "")


def _note_python(file: Path, of_conda: list[str], found: Asked) -> None:
    for entry in of_conda:
        version = re.fullmatch(r"python\s*==?\s*(\d+\.\d+)[\w.*=]*", entry.rpartition("::")[2].strip())
        here = ".".join(platform.python_version_tuple()[:2])
        if version and version[1] != here:
            found.notes.append(f"{shown_path(file)}: is for Python {version[1]}, and the stack gets Python {here}")
