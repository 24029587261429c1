"""pip's own settings of package indexes, which uv does not read: its configuration files and PIP_* variables."""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from harness.errors import UsageError
from harness.reading import read_text, shown_path

#: pip's name of a setting -> uv's variable, and what separates several values in it.
_AS_VARIABLES: Mapping[str, tuple[str, str]] = {
    "index-url": ("UV_DEFAULT_INDEX", ""),
    "extra-index-url": ("UV_EXTRA_INDEX_URL", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", ""),
}

#: uv's variables that, if they are set, stand for a setting as well.
_SET_ALREADY = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_EXTRA_INDEX_URL": "UV_INDEX"}

#: Bytes of a configuration file of pip.
_LIMIT = 2**16


def for_uv() -> dict[str, str]:
    """Return the variables that say to uv what pip's settings say to pip. What is set for uv itself goes first.

    With several indexes, pip takes the best release of all of them, while uv takes the first index that has the package.
    So UV_INDEX_STRATEGY goes with them.

    Raises UsageError if a configuration file of pip cannot be read.
    """
    settings = _settings()
    found = {}
    for name, (variable, separator) in _AS_VARIABLES.items():
        words = settings.get(name, "").split()
        if words and not os.environ.get(variable) and not os.environ.get(_SET_ALREADY.get(variable, "")):
            found[variable] = separator.join(words) if separator else words[0]
    if "UV_EXTRA_INDEX_URL" in found and not os.environ.get("UV_INDEX_STRATEGY"):
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return found


def no_index() -> bool:
    """Return whether pip is to use no index (uv has no variable for that)."""
    return _settings().get("no-index", "").lower() in ("1", "true", "yes", "on", "y", "t")


def _settings() -> dict[str, str]:
    """Return pip's settings by their names: of files, of their [install] part, and of variables, each over those before."""
    general: dict[str, str] = {}
    install: dict[str, str] = {}
    for file in _files():
        if not file.is_file():
            continue
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(read_text(file, _LIMIT))
        except configparser.Error as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"{shown_path(file)}: is pip's configuration, and cannot be read ({reason})") from None
        for section, into in (("global", general), ("install", install)):
            if parser.has_section(section):
                into |= {name.replace("_", "-"): value for name, value in parser.items(section)}
    found = general | install
    for name in (*_AS_VARIABLES, "no-index"):
        if value := os.environ.get(f"PIP_{name.replace('-', '_').upper()}"):
            found[name] = value
    return found


def _files() -> list[Path]:
    """Return where pip looks for its configuration, the last of which goes first."""
    chosen = os.environ.get("PIP_CONFIG_FILE")
    if chosen == os.devnull:
        return []
    files = [
        Path(folder, "pip/pip.conf") for folder in os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":") if folder
    ]
    files.append(Path("/etc/pip.conf"))
    try:
        home = Path.home()
        files += [home / ".pip/pip.conf", Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "pip/pip.conf")]
    except RuntimeError:  # a user without a home directory
        pass
    files.append(Path(sys.prefix, "pip.conf"))
    return [*files, Path(chosen)] if chosen else files
