"""Files that torch.save wrote, read without torch: a zip archive of a pickle and of the numbers of each storage.

The numbers are read once, in pieces: their checksums must be those that the archive names, and they must be finite.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from harness.checkpoints.header import BITS, FILE_LIMIT
from harness.checkpoints.pickles import Broken, Described, Tensor, describe
from harness.checkpoints.stored_numbers import PIECE, all_finite, number
from harness.errors import UsageError
from harness.reading import opened, shown

#: Bytes of the pickle in an archive. The optimizer's state of 50,000 tensors has 12 MB.
PICKLE_LIMIT = 24 * 2**20

#: Bytes of an archive's directory. One of 150,000 storages has 15 MB.
_DIRECTORY_LIMIT = 24 * 2**20

_END, _END_64, _LOCATOR = 22, 56, 20


class Torn(Exception):
    """A file that is no whole archive of torch's. The message says why, in words that follow the file's name."""


@dataclass
class TorchFile:
    """What a file holds.

    - described: the content of its pickle.
    - broken: keys of storages with numbers that are NaN or infinite.
    - scalars: key of each storage of one number -> the number.
    - unsummed: whether the file has no checksums (torch.serialization.set_crc32_options(False)).
    """

    described: Described
    broken: set[str] = field(default_factory=set)
    scalars: dict[str, float] = field(default_factory=dict)
    unsummed: bool = False

    @property
    def value(self) -> Any:
        return self.described.value

    def number(self, value: Any) -> float | None:
        """Return a number, or that of a tensor of one; None for anything else."""
        if isinstance(value, Tensor):
            return self.scalars.get(value.storage.key)
        return float(value) if type(value) in (int, float) else None


def read(path: Path) -> TorchFile:
    """Return what a file of torch.save holds. Raises Torn, and UsageError if it cannot be read."""
    with opened(path, FILE_LIMIT) as file:
        return read_part(file, 0, os.fstat(file.fileno()).st_size)


def read_part(file: BinaryIO, begin: int, length: int) -> TorchFile:
    """Return what a part of a file holds, which torch.save wrote there. Errors as for `read`."""
    try:
        return _read(_Part(file, begin, length), length)
    except Torn:
        raise
    except Broken as error:
        raise Torn(str(error)) from None
    except zipfile.BadZipFile:
        raise Torn(_no_archive(file, begin, length)) from None
    except (OSError, UsageError):
        raise
    except Exception as error:  # what zipfile raises for damaged bytes is of many types
        raise Torn(f"has {length:,} bytes, which are no archive of torch ({type(error).__name__})") from None


def _no_archive(file: BinaryIO, begin: int, length: int) -> str:
    file.seek(begin)
    first = file.read(min(length, 4096))
    if not length:
        return "is empty"
    if not first.strip(b"\0"):
        return f"has {length:,} bytes, the first of which are all zero"
    if first[:2] == b"\x80\x02" and b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." in first[:16]:
        return "is in the form of torch before 1.6, which is not read"
    if first[:4] == b"PK\x03\x04":
        return f"has {length:,} bytes and no end: it is the beginning of a longer file"
    return f"has {length:,} bytes, which are no archive of torch"


class _Part:
    """A part of a file, as a file."""

    def __init__(self, file: BinaryIO, begin: int, length: int) -> None:
        self._file, self._begin, self._length, self._at = file, begin, length, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._length)[whence]
        if self._at < 0:
            raise ValueError("a place before the file's beginning")
        return self._at

    def tell(self) -> int:
        return self._at

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        self._file.seek(self._begin + self._at)
        content = self._file.read(left if size < 0 else min(size, left))
        self._at += len(content)
        return content


def _read(part: _Part, length: int) -> TorchFile:
    _check_directory(part, length)
    part.seek(0)
    if part.read(4) != b"PK\x03\x04":
        raise Torn(f"has {length:,} bytes, the first of which are no archive's")
    with zipfile.ZipFile(part) as archive:
        entries = archive.infolist()
    if any(entry.compress_type for entry in entries):
        raise Torn("has compressed entries, which torch does not write")
    if sum(entry.file_size for entry in entries) > length:
        raise Torn("has entries that are larger than the file")
    inner = {entry.filename.partition("/")[2]: entry for entry in entries}
    if "data.pkl" not in inner:
        raise Torn("is an archive without data.pkl, so torch did not write it")
    unsummed = not any(entry.CRC for entry in entries)
    size = inner["data.pkl"].file_size
    if size > PICKLE_LIMIT:
        raise Torn(f"has a pickle of {size:,} bytes; {PICKLE_LIMIT:,} are read")
    described = describe(b"".join(_pieces(part, inner["data.pkl"], unsummed)))
    found = TorchFile(described, unsummed=unsummed)
    for name, entry in inner.items():
        key = name.removeprefix("data/") if name.startswith("data/") else None
        storage = described.storages.get(key) if key is not None else None
        if storage is not None and storage.dtype and entry.file_size * 8 != storage.numel * BITS[storage.dtype]:
            raise Torn(f"has {entry.file_size:,} bytes for the storage {shown(key)}, and {storage.numel:,} numbers")
        if name != "data.pkl":
            for piece in _pieces(part, entry, unsummed):
                if storage is not None and not all_finite(piece, storage.dtype):
                    found.broken.add(storage.key)
                if storage is not None and storage.numel == 1 and (one := number(piece, storage.dtype)) is not None:
                    found.scalars[storage.key] = one
    missing = [key for key in described.storages if f"data/{key}" not in inner]
    if missing:
        raise Torn(f"has no entry for the storage {shown(missing[0])}")
    return found


def _check_directory(part: _Part, length: int) -> None:
    """Raise Torn for a directory that is too large, before zipfile reads it. torch's archives have no comment."""
    if length < _END:
        raise zipfile.BadZipFile
    part.seek(length - _END)
    end = part.read(_END)
    if end[:4] != b"PK\x05\x06":
        raise zipfile.BadZipFile
    size, begin = struct.unpack_from("<LL", end, 12)
    stop = length - _END
    if length >= _END + _LOCATOR + _END_64:
        part.seek(length - _END - _LOCATOR - _END_64)
        record = part.read(_END_64)
        if record[:4] == b"PK\x06\x06":
            (size, begin), stop = struct.unpack_from("<QQ", record, 40), length - _END - _LOCATOR - _END_64
    if begin + size != stop:
        raise Torn(f"has {length:,} bytes, and its directory is that of {begin + size + length - stop:,}")
    if size > _DIRECTORY_LIMIT:
        raise Torn(f"has a directory of {size:,} bytes; {_DIRECTORY_LIMIT:,} are read")


def _pieces(part: _Part, entry: zipfile.ZipInfo, unsummed: bool) -> Any:
    """Yield the bytes of an entry in pieces, and raise Torn at the end if their checksum is another."""
    part.seek(entry.header_offset)
    head = part.read(30)
    if head[:4] != b"PK\x03\x04":
        raise Torn(f"has no entry where its directory names {shown(entry.filename)}")
    part.seek(entry.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"))
    left, sum_ = entry.file_size, 0
    while left:
        piece = part.read(min(left, PIECE))
        if not piece:
            raise Torn(f"ends within {shown(entry.filename)}")
        left -= len(piece)
        sum_ = zlib.crc32(piece, sum_)
        yield piece
    if not unsummed and sum_ != entry.CRC:
        raise Torn(f"has changed bytes in {shown(entry.filename)}: the checksum is another")
