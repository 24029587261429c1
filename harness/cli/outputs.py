"""Options that name a file to write. Whether it can be written is found out before the command works."""

from __future__ import annotations

import importlib.util
import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer.core

from harness.errors import UsageError
from harness.files import check_writable, check_writable_directory

if TYPE_CHECKING:
    # Some releases of typer come with a click of their own.
    Context = Any

#: The key of `Context.meta` under which a command's outputs lie: name of the parameter -> its kind.
_OUTPUTS = "harness.cli.outputs"

#: Extensions of files that matplotlib writes by itself. Asking it takes seconds, and makes its cache.
_FORMATS = ("png", "svg", "pdf", "jpg", "jpeg", "webp", "tif", "tiff", "eps", "ps", "svgz")


def file_option(help: str, kind: str = "file", metavar: str = "FILE") -> Any:
    """Return an option that names what a command writes. Its type is `Path | None`.

    - kind: "file", "plot" (a file in a format that matplotlib writes), or "directory".
    """

    def note(context: typer.Context, param: typer.CallbackParam, value: Path | None) -> Path | None:
        context.meta.setdefault(_OUTPUTS, {})[param.name] = kind
        return value

    return typer.Option(metavar=metavar, help=help, callback=note)


class Command(typer.core.TyperCommand):
    """A command that checks its outputs before it works."""

    def invoke(self, ctx: Context) -> Any:
        """Check the outputs, and call the command. Raises UsageError if something in it ends the process."""
        _require_directory()
        kinds = {name: kind for name, kind in ctx.meta.get(_OUTPUTS, {}).items() if ctx.params.get(name) is not None}
        options = {param.name: param.opts[0] for param in self.params}
        for name, kind in kinds.items():
            ctx.params[name] = _checked(options[name], ctx.params[name], kind)
        others = [
            (options[name], Path(value))
            for name, values in ctx.params.items()
            for value in (values if isinstance(values, (list, tuple)) else [values])
            if isinstance(value, (str, Path)) and value
        ]
        for name in kinds:
            _require_its_own(options[name], ctx.params[name], [other for other in others if other[0] != options[name]])
        try:
            return super().invoke(ctx)
        except EOFError as error:  # typer would say "Aborted"
            raise RuntimeError(f"EOFError: {error}") from error
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):
                raise error.__context__ from None
            *_, (frame, line) = traceback.walk_tb(error.__traceback__)
            where = f"{frame.f_code.co_filename}, line {line}"
            raise UsageError(f"{where}: ended the command by sys.exit({error.code!r}), so nothing is judged") from error


def _require_directory() -> None:
    try:
        os.getcwd()
    except OSError:
        raise UsageError("the current directory does not exist any more; change to another one") from None


def _checked(option: str, path: Path, kind: str) -> Path:
    if kind == "directory":
        check_writable_directory(option, path)
        return path
    if kind == "plot":
        _check_format(option, path)
    return check_writable(option, path)


def _check_format(option: str, path: Path) -> None:
    """Raise UsageError if matplotlib is missing, or for an extension that names no format."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"{option}: matplotlib is not installed; pip install matplotlib")
    if path.suffix.removeprefix(".").lower() not in _FORMATS:
        raise UsageError(f"{option} {path}: no format of a plot; end the name in .{', .'.join(_FORMATS)}")


def _require_its_own(option: str, path: Path, others: list[tuple[str, Path]]) -> None:
    """Raise UsageError if another option names the same file, to read it or to write it."""
    for other, file in others:
        if _same(path, file):
            raise UsageError(f"{option} {path}: {other} names the same file; name another one")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.resolve() == other.resolve() or one.samefile(other)
    except (OSError, ValueError, RuntimeError):  # one is missing, or no path
        return False
