"""The header of a safetensors file: which tensors it holds, read without torch and without the tensors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.reading import opened, parse_json, shown, shown_path

#: Bytes of a header. The format's own limit is 100 MB; an adapter of 50,000 tensors has 8 MB.
LIMIT = 16 * 2**20

#: Bytes of a file: a checkpoint of a large model in one file.
FILE_LIMIT = 2**44

#: Bits of a number in each dtype of the format.
BITS = {
    **{"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **{"C64": 64},
}


@dataclass(frozen=True)
class Entry:
    """A tensor. dtype: as the format names it, such as "BF16". begin, end: its bytes, after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0


class Torn(UsageError):
    """A file that is no whole safetensors file. The message says why, in words that follow the file's name."""


def read(path: Path) -> dict[str, Entry]:
    """Return the tensors of a safetensors file by name, without reading them.

    Raises Torn if the file's size, header or offsets do not fit each other, and UsageError if it cannot be read.
    """
    with opened(path, FILE_LIMIT) as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or not 2 <= length <= min(size - 8, LIMIT):
            raise Torn(f"has {size:,} bytes, which are no header of safetensors")
        text = file.read(length)
    try:
        header = parse_json(text.decode(), shown_path(path.name), lines=False)
    except (UnicodeDecodeError, UsageError):
        raise Torn("has a header that is no JSON") from None
    if not isinstance(header, dict):
        raise Torn("has a header that is no JSON object")
    header.pop("__metadata__", None)
    found = {name: _entry(name, value) for name, value in header.items()}
    end = 0
    for name, value in sorted(header.items(), key=lambda pair: pair[1]["data_offsets"]):
        begin, stop = value["data_offsets"]
        entry = found[name]
        bits = BITS[entry.dtype]
        for dimension in entry.shape:
            bits *= dimension
        if begin != end or (stop - begin) * 8 != bits:
            raise Torn(f"has a header that gives {shown(name)} the bytes {begin:,} to {stop:,}, which are not its own")
        end = stop
    if size != 8 + length + end:
        raise Torn(f"has {size:,} bytes, but its header describes {8 + length + end:,}")
    return found


def _entry(name: str, value: Any) -> Entry:
    try:
        dtype, shape, (begin, stop) = value["dtype"], value["shape"], value["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise Torn(f"has a header whose entry {shown(name)} is none of a tensor") from None
    numbers = [*shape, begin, stop] if isinstance(shape, list) else [-1]
    if dtype not in BITS or not all(type(number) is int and number >= 0 for number in numbers):
        raise Torn(f"has a header whose entry {shown(name)} is none of a tensor")
    return Entry(dtype, tuple(shape), begin, stop)
