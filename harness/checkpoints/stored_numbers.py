"""Numbers in pieces of a file: are they finite, are they zero? Read with numpy, so that no tensor is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harness.checkpoints.header import BITS, FILE_LIMIT, Entry
from harness.reading import opened, shown

#: Bytes that are read at once. A multiple of eight, so that no number is cut.
PIECE = 2**23

#: Bytes of a block of a disk: what was not written is zero from a multiple of it on.
BLOCK = 4096

#: Numbers at the end of a file that may be zero in any case.
_ZEROS = 64

_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def all_finite(piece: bytes, dtype: str) -> bool:
    """Return whether a piece has no NaN and no infinity. dtype: as safetensors names it; others than floats are finite."""
    if dtype in _FLOATS:
        return bool(np.isfinite(np.frombuffer(piece, _FLOATS[dtype])).all())
    if dtype == "BF16":
        return bool(((np.frombuffer(piece, "<u2") & 0x7F80) != 0x7F80).all())
    if dtype == "F8_E5M2":
        return bool(((np.frombuffer(piece, "u1") & 0x7C) != 0x7C).all())
    if dtype == "F8_E4M3":
        return bool(((np.frombuffer(piece, "u1") & 0x7F) != 0x7F).all())
    return True


def has_nan(piece: bytes, dtype: str) -> bool:
    """Return whether a piece has a NaN."""
    if dtype in _FLOATS:
        return bool(np.isnan(np.frombuffer(piece, _FLOATS[dtype])).any())
    if dtype == "BF16":
        return bool(((np.frombuffer(piece, "<u2") & 0x7FFF) > 0x7F80).any())
    return not all_finite(piece, dtype)


def number(content: bytes, dtype: str) -> float | None:
    """Return the number that some bytes are; None for dtypes that count nothing."""
    kind = {**_FLOATS, "I64": "<i8", "I32": "<i4"}.get(dtype)
    return float(np.frombuffer(content, kind)[0]) if kind is not None else None


@dataclass
class Scan:
    """What the numbers of a safetensors file are like: names of tensors.

    - infinite: with an infinity or a NaN. nan: with a NaN. moved: with a number that is not zero.
    - cut: a sentence if the file ends with zeros that were never written, else "".
    """

    infinite: set[str] = field(default_factory=set)
    nan: set[str] = field(default_factory=set)
    moved: set[str] = field(default_factory=set)
    cut: str = ""


def scan(path: Path, tensors: Mapping[str, Entry]) -> Scan:
    """Read the numbers of a safetensors file whose header `header.read` has taken."""
    found, last = Scan(), 0
    with opened(path, FILE_LIMIT) as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        for name, entry in sorted(tensors.items(), key=lambda pair: pair[1].begin):
            file.seek(start + entry.begin)
            at = entry.begin
            while piece := file.read(min(entry.end - at, PIECE)):
                if not all_finite(piece, entry.dtype):
                    found.infinite.add(name)
                    if has_nan(piece, entry.dtype):
                        found.nan.add(name)
                written = len(piece.rstrip(b"\0"))
                if written:
                    last = at + written
                    if (np.frombuffer(piece, "u1") & 0x7F).any():  # else only zeros with a sign
                        found.moved.add(name)
                at += len(piece)
    found.cut = _cut(tensors, last, start)
    return found


def _cut(tensors: Mapping[str, Entry], last: int, start: int) -> str:
    """Return a sentence if the zeros at a file's end begin within a tensor as no trained tensor's do.

    A system that crashes leaves files whose end was not written. Rows of zeros are common, so zeros count that begin
    within a row, or at a block of the disk.

    - last: the first byte of the zeros, after the header. start: the length of the header.
    """
    for name, entry in tensors.items():
        bits = BITS[entry.dtype]
        if not entry.begin < last < entry.end or bits % 8:
            continue
        size = bits // 8
        number = -(-(last - entry.begin) // size)
        row = entry.shape[-1] if len(entry.shape) > 1 else math.prod(entry.shape)
        block = -(start + last) % BLOCK < size
        end = max(one.end for one in tensors.values())
        if (number % row or block) and (end - last) // size >= _ZEROS:
            return f"ends with {end - last:,} bytes of zeros that begin within {shown(name)}: its end was not written"
    return ""
