"""Reading files that somebody else wrote: regular files of a limited size, as UTF-8 text or as JSON.

Every function raises UsageError with one sentence for what cannot be read. None blocks, and none starts to parse a file
that is too large.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from harness.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Bytes of a file that is read whole. A report of the whole suites has 6 MB, and so has the index of the largest model.
LIMIT = 16 * 2**20

#: Bytes of a file that is read line by line. Data sets of instructions have up to some 100 MB, and rows stay in memory.
LINES_LIMIT = 2**30

#: Bytes of one line: a row of half a million token ids with their labels.
LINE_LIMIT = 8 * 2**20

#: Levels of lists and objects in JSON. A report has eight; Python's own limit depends on the caller's depth.
DEPTH = 64

#: Digits of an integer in JSON: any such one is also a float. Python needs quadratic time for a long one.
DIGITS = 300

_BOM = b"\xef\xbb\xbf"
_KINDS = (
    (stat.S_ISDIR, "is a directory"),
    (stat.S_ISFIFO, "is a pipe"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISCHR, "is a device"),
    (stat.S_ISBLK, "is a device"),
)


def shown(value: Any, limit: int = 80) -> str:
    """Return a value as messages quote it: its repr in one printable line, shortened in the middle of a long list."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)  # as it stands in a file
    if isinstance(value, str):
        text = repr(value if len(value) <= limit else f"{value[: limit - 3]}...")
    elif isinstance(value, (list, tuple, dict)) and len(value) > limit:
        return f"a {type(value).__name__} of {len(value)} entries"
    else:
        try:
            text = repr(value)
        except (RecursionError, ValueError):
            return f"a {type(value).__name__}"
    text = shown_path(text)
    return text if len(text) <= 2 * limit else f"{text[: 2 * limit - 3]}..."


def shown_path(path: str | Path) -> str:
    """Return a path or a name as messages have it: as it is, or with escapes for what cannot be printed."""
    text = str(path)
    return text if text.isprintable() else ascii(text)[1:-1]


def opened(path: str | Path, limit: int) -> BinaryIO:
    """Return a regular file, opened for reading. limit: how many bytes it may have. UsageError for what is none."""
    name = shown_path(path)
    try:
        # A device is not even opened: opening some has an effect. O_NONBLOCK: what is a pipe by now does not block.
        _check_kind(name, os.stat(path))
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        raise UsageError(f"{name}: no such file") from None
    except OSError as error:
        raise UsageError(f"{name}: cannot be read ({error.strerror})") from None
    except ValueError:  # a NUL, or half of a surrogate pair
        raise UsageError(f"{name}: not a file name") from None
    file = os.fdopen(descriptor, "rb")
    try:
        found = os.fstat(descriptor)
        _check_kind(name, found)
        if found.st_size > limit:
            raise UsageError(_too_large(path, limit, found.st_size))
    except BaseException:
        file.close()
        raise
    return file


def read_bytes(path: str | Path, limit: int = LIMIT) -> bytes:
    """Return what a regular file holds. `limit`: how many bytes it may have."""
    with opened(path, limit) as file:
        return _read(path, file, limit)


def read_text(path: str | Path, limit: int = LIMIT) -> str:
    """Return the text of a UTF-8 file, without the byte order mark that it may begin with."""
    return _decoded(read_bytes(path, limit), shown_path(path))


def read_json(path: str | Path, limit: int = LIMIT, nan: bool = False) -> Any:
    """Return the JSON value in a file. Parameters as for `parse_json` and `read_bytes`."""
    return parse_json(read_text(path, limit), shown_path(path), nan)


def read_json_lines(path: str | Path, limit: int = LINES_LIMIT, nan: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, JSON value) for each line that is not blank. Lines end with a line feed.

    The file is read as it is iterated: an error in a line is raised after the lines before it were yielded.
    """
    name, left, first = shown_path(path), limit, True
    with opened(path, limit) as file:
        number = 0
        while line := _line(path, file):
            number, left = number + 1, left - len(line)
            if left < 0:
                raise UsageError(_too_large(path, limit))
            if len(line) > LINE_LIMIT:
                raise UsageError(f"{name}, line {number}: has more than {LINE_LIMIT:,} bytes; write one row a line")
            text = _decoded(line, f"{name}, line {number}", bom=first).strip()
            first = False
            if text:
                yield number, parse_json(text, f"{name}, line {number}", nan, lines=False)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Return the tables of a text in TOML.

    - where: what messages call the source. The parser's words name the line.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where}: not TOML ({error})") from None
    except (RecursionError, ValueError):  # a number of too many digits
        raise UsageError(f"{where}: not TOML (nested too deep, or a number is too long)") from None


def parse_json(text: str, where: str, nan: bool = False, lines: bool = True) -> Any:
    """Return a JSON value.

    - where: what messages call the source.
    - nan: whether NaN and Infinity are taken, which Python writes and JSON does not have.
    - lines: whether messages name the line beside the column.

    Refused, too: an object that has a key twice, more than `DEPTH` levels, an integer of more than `DIGITS` digits, a
    float that overflows, and half of a surrogate pair, which no UTF-8 file can hold.
    """
    if not text.strip():
        raise UsageError(f"{where}: not JSON (it is empty)")
    if (deep := _too_deep(text)) is not None:
        raise UsageError(f"{where}: JSON nested too deep, in more than {DEPTH} levels ({_place(text, deep, lines)})")

    def constant(word: str) -> float:
        if nan:
            return float(word)
        raise UsageError(f"{where}: {word} is no JSON number ({_place_of(text, word, lines)}); write a finite one")

    def integer(digits: str) -> int:
        if len(digits.lstrip("-")) > DIGITS:
            place = _place_of(text, digits, lines)
            length = len(digits.lstrip("-"))
            raise UsageError(f"{where}: an integer of {length} digits ({place}); {DIGITS} are allowed")
        return int(digits)

    def number(digits: str) -> float:
        value = float(digits)
        if not nan and not math.isfinite(value):
            raise UsageError(f"{where}: {shown(digits)} is too large for a float ({_place_of(text, digits, lines)})")
        return value

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise UsageError(f"{where}: an object has the key {shown(twice)} twice; keep one of them")
        return made

    # A hook costs more than the number that it reads, so it is left out where no number needs it.
    hooks: dict[str, Any] = {}
    if _LONG.search(text):
        hooks["parse_int"] = integer
    if _OVERFLOW.search(text):
        hooks["parse_float"] = number
    try:
        with _no_collection() if len(text) > _LARGE else contextlib.nullcontext():
            value = json.loads(text, parse_constant=constant, object_pairs_hook=object_of, **hooks)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: not JSON ({error.msg}, {_place(text, error.pos, lines)})") from None
    except RecursionError:
        raise UsageError(f"{where}: JSON nested too deep") from None
    if surrogate := _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            place = _place(text, surrogate.start(), lines)
            raise UsageError(f"{where}: half of a surrogate pair ({place}); write the whole character") from None
    return value


_LONG = re.compile(rf"[0-9]{{{DIGITS + 1}}}")
#: A float overflows if its exponent has three digits, or if it has 300 digits before the point.
_OVERFLOW = re.compile(r"[eE]\+?[0-9]{3}|[0-9]{300}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_NO_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[^\[\]{}"]+', re.DOTALL)


#: Characters of JSON of which the garbage collector is kept away.
_LARGE = 10**5


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Stop the garbage collector: a million new lists start it often, and it looks at all objects of torch each time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _too_deep(text: str) -> int | None:
    """Return where the first bracket is that opens more than `DEPTH` levels, or None."""
    if text.count("[") + text.count("{") <= DEPTH:
        return None
    # What is no bracket goes, and then the innermost pairs, again and again: that is fast, but does not say where.
    left = _NO_BRACKETS.sub("", text)
    for _ in range(DEPTH):
        before, left = left, left.replace("[]", "").replace("{}", "")
        if left == before:
            break
    if not left:
        return None
    depth = 0
    for match in _BRACKETS.finditer(text):
        if match[0] in "[{":
            depth += 1
            if depth > DEPTH:
                return match.start()
        elif match[0] in "]}":
            depth -= 1
    return None


def _place_of(text: str, word: str, lines: bool) -> str:
    """Return the place of a word that stands outside of strings."""
    for match in re.finditer(rf'"(?:[^"\\]|\\.)*"|({re.escape(word)})', text, re.DOTALL):
        if match[1]:
            return _place(text, match.start(), lines)
    return "somewhere"


def _place(text: str, position: int, lines: bool) -> str:
    column = position - text.rfind("\n", 0, position)
    return f"line {text.count(chr(10), 0, position) + 1}, column {column}" if lines else f"column {column}"


def _check_kind(name: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((words for is_kind, words in _KINDS if is_kind(found.st_mode)), "is no regular file")
        raise UsageError(f"{name}: {kind}; name a regular file")


def _read(path: str | Path, file: BinaryIO, limit: int) -> bytes:
    # Files of /proc say that they have no bytes, so the size is looked at again.
    try:
        content = file.read(limit + 1)
    except OSError as error:
        raise UsageError(f"{shown_path(path)}: cannot be read ({error.strerror})") from None
    if content is None:
        raise UsageError(f"{shown_path(path)}: cannot be read (it would block)")
    if len(content) > limit:
        raise UsageError(_too_large(path, limit))
    return content


def _line(path: str | Path, file: BinaryIO) -> bytes:
    try:
        return file.readline(LINE_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"{shown_path(path)}: cannot be read ({error.strerror})") from None


def _too_large(path: str | Path, limit: int, size: int | None = None) -> str:
    has = "more" if size is None else f"{size:,} bytes"
    return f"{shown_path(path)}: too large ({has}; {limit:,} bytes are allowed)"


def _decoded(content: bytes, where: str, bom: bool = True) -> str:
    begin = len(_BOM) if bom and content.startswith(_BOM) else 0
    try:
        return content[begin:].decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{where}: not UTF-8 text ({error.reason} at byte {begin + error.start}); save it as UTF-8"
        ) from None
