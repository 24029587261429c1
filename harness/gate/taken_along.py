"""Take an installed package along into other environments, as a wheel made of its files.

DeepSpeed has no wheel on the index, and its setup script imports torch. Where it is installed without compiled extensions, it
is pure Python: its files work beside any torch.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.metadata
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness.errors import UsageError

#: Files of the metadata that describe one installation. The wheel gets a RECORD of its own.
_OF_AN_INSTALLATION = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json")

#: Endings of files that are bound to a build, or that lead to another folder (an editable installation).
_BOUND = (".so", ".pyd", ".pth")

#: The time of each file in a wheel: the earliest that a zip file has.
_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Copy:
    """An installed package that can be taken along.

    - requires: what it needs, without torch, which each stack has.
    - files: path in a wheel -> installed file.
    - digest: sha256 of all paths and contents.
    """

    name: str
    version: str
    requires: tuple[str, ...]
    files: Mapping[str, Path]
    digest: str

    @property
    def line(self) -> str:
        """The line of a lock that names this copy. As a requirements file, the lock has it as a comment."""
        return f"# copied {self.name}=={self.version} sha256:{self.digest}\n"

    def wheel(self, folder: Path) -> Path:
        """Write the wheel into a folder, and return its path."""
        label = f"{self.name.replace('-', '_')}-{self.version}"
        path, record = folder / f"{label}-py3-none-any.whl", []
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, file in self.files.items():
                content = file.read_bytes()
                archive.writestr(zipfile.ZipInfo(name, _TIME), content)
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                record.append(f"{name},sha256={digest},{len(content)}\n")
            metadata = next(name for name in self.files if name.endswith(".dist-info/METADATA"))
            beside = metadata.removesuffix("METADATA") + "RECORD"
            archive.writestr(zipfile.ZipInfo(beside, _TIME), "".join([*record, f"{beside},,\n"]))
        return path


@functools.cache
def of(name: str) -> Copy:
    """Return the copy of an installed package. Raises UsageError with the reason if it cannot be taken along."""
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise UsageError(f"{name} is not installed here") from None
    files = {
        path.as_posix(): Path(str(path.locate()))
        for path in sorted(found.files or (), key=str)
        if path.parts[0] != ".." and "__pycache__" not in path.parts and path.name not in _OF_AN_INSTALLATION
    }
    bound = next((path for path in files if path.endswith(_BOUND)), None)
    if bound is not None or not any(path.endswith(".dist-info/METADATA") for path in files):
        raise UsageError(f"{name} has no wheel, and the installed one is bound to this environment ({bound})")
    digest = hashlib.sha256()
    for path, file in files.items():
        try:
            content = file.read_bytes()
        except OSError as error:
            raise UsageError(f"{name}: {path} cannot be read ({error.strerror}), so it cannot be taken along") from None
        digest.update(f"{path} {hashlib.sha256(content).hexdigest()}\n".encode())
    needed = [Requirement(line) for line in found.requires or ()]
    requires = [
        f"{one.name}{one.specifier}"
        for one in needed
        if canonicalize_name(one.name) != "torch" and (one.marker is None or one.marker.evaluate({"extra": ""}))
    ]
    return Copy(str(canonicalize_name(name)), found.version, tuple(requires), files, digest.hexdigest())
