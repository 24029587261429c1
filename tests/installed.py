"""The wheel, built from this checkout and installed in a virtual environment that does not know the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from harness.gate import environments, uv
from harness.paths import ROOT

#: Variables through which a process could find the checkout, or settings of this one.
LEFT_OUT = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV", "PEFT_HARNESS_USER_MODULES")


@dataclass(frozen=True)
class Installed:
    """A virtual environment that has the wheel. place: its directory. bytecode: where its processes keep theirs."""

    place: Path
    wheel: Path
    bytecode: Path

    def run(self, program: str, *words: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, such as "python" or "peft-harness"."""
        environment = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
        environment |= {"PYTHONPYCACHEPREFIX": str(self.bytecode), **variables}
        command = [str(self.place / "bin" / program), *map(str, words)]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Return the environment. It is made once for all workers of xdist."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if base.name.startswith("popen-gw") else base) / "wheel"
    shared.mkdir(exist_ok=True)
    return install(shared)


def install(shared: Path) -> Installed:
    """Build the wheel by way of an sdist and install it.

    The environment has the same releases as the one that runs the tests, so uv links what is in its cache: 3 s.
    """
    installed = Installed(shared / "venv", shared / "dist", shared / "bytecode")
    with FileLock(shared / "lock"):
        if not (shared / "done").exists():
            _uv("build", "--out-dir", str(installed.wheel), str(ROOT))
            _uv("venv", "--python", sys.executable, str(installed.place))
            pins = shared / "pins.txt"
            pins.write_text(environments.running().lock)
            python = str(installed.place / "bin" / "python")
            (wheel,) = installed.wheel.glob("*.whl")
            _uv(
                "pip",
                "install",
                "--python",
                python,
                "--constraints",
                str(pins),
                f"peft-harness[gate,nf4] @ {wheel.as_uri()}",
            )
            _share_bytecode(installed)
            (shared / "done").touch()
    return installed


def _uv(*words: str) -> None:
    done = uv.run(*words)
    assert done.returncode == 0, done.stderr


def _share_bytecode(installed: Installed) -> None:
    """Keep the bytecode of the environment's packages where this one's is kept. To compile it takes 20 s.

    uv links the same files into both environments, unless they came from different places. Bytecode has the time of its
    source: if two files of different times had one place, each process would compile them again, in both environments. So
    a package that is not the same as ours has a place of its own, which outlives this run.
    """
    ours = Path(sysconfig.get_path("purelib"))
    if sys.pycache_prefix is None:
        return
    packages = installed.place / ours.relative_to(sys.prefix)
    theirs = installed.bytecode / packages.relative_to("/")
    theirs.mkdir(parents=True)
    for package in packages.iterdir():
        if package.name == "harness" or not (package / "__init__.py").is_file():
            continue
        same = _made(package / "__init__.py") == _made(ours / package.name / "__init__.py")
        kept = ours.relative_to("/") if same else "of-the-wheel"
        place = Path(sys.pycache_prefix) / kept / package.name
        place.mkdir(parents=True, exist_ok=True)
        (theirs / package.name).symlink_to(place)


def _made(file: Path) -> tuple[float, int] | None:
    """Return what bytecode records of its source: time and size."""
    return (file.stat().st_mtime, file.stat().st_size) if file.is_file() else None
