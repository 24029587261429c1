"""An exact checksum of a tensor's bytes, computed on the tensor's device: 13 GB need not leave a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: 8-byte words that are processed at once: 128 MiB. Intermediate results take three times as much.
CHUNK = 1 << 24

#: Factors of positions for the two sums (odd, so that no two positions collide), and the mixing of SplitMix64 (Steele et al.
#: 2014).
_STREAMS = (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03)
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST = 31


def checksum(tensor: torch.Tensor, chunk: int = CHUNK) -> str:
    """Return 32 hex digits for the bytes of a tensor in row-major order. They are the same on every device.

    - chunk: how many 8-byte words are processed at once.

    Each word is mixed with its position, and the results are summed modulo 2^64, twice with different factors. Mixing is
    a bijection of the word, so a change within one word always changes the digits. Any other change is missed with a
    probability of 2^-128. Integer sums do not depend on their order, so the same bytes always give the same digits. The
    digits do not depend on dtype and shape.
    """
    import torch

    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if data.storage_offset() % 8:
        data = data.clone()  # a view as int64 must start at a multiple of eight bytes
    rest = data.numel() % 8
    words = data[: data.numel() - rest].view(torch.int64)
    sums = [0, 0]
    for start in range(0, words.numel(), chunk):
        part = words[start : start + chunk]
        positions = torch.arange(start, start + part.numel(), dtype=torch.int64, device=part.device)
        for index, stream in enumerate(_STREAMS):
            sums[index] += int(_mixed(part + (positions + 1) * _signed(stream)).sum())
    if rest:
        tail = int.from_bytes(bytes(data[data.numel() - rest :].tolist()), "little")
        for index, stream in enumerate(_STREAMS):
            sums[index] += int(_mixed(torch.tensor(_signed(tail + (words.numel() + 1) * stream))))
    return "".join(f"{total % 2**64:016x}" for total in sums)


def _mixed(words: torch.Tensor) -> torch.Tensor:
    for shift, factor in _MIX:
        words = (words ^ _shifted(words, shift)) * _signed(factor)
    return words ^ _shifted(words, _LAST)


def _shifted(words: torch.Tensor, by: int) -> torch.Tensor:
    # torch shifts int64 with its sign. For the mixing to be a bijection, zeros must come in at the top.
    shifted: torch.Tensor = (words >> by) & (2 ** (64 - by) - 1)
    return shifted


def _signed(value: int) -> int:
    """Return the int64 with the same 64 bits."""
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value
