"""Checksums of tensors: equal to the same arithmetic with Python's integers, and different for every changed tensor."""

import pytest
import torch

from harness.subjects import observer
from harness.tensors import checksum
from harness.tensors.checksum import CHUNK


def by_hand(data):
    """Compute the checksum of bytes with Python's integers."""
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]
    digits = ""
    for stream in (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03):
        total = 0
        for position, word in enumerate(words, start=1):
            mixed = (word + position * stream) % 2**64
            mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
            total += mixed ^ (mixed >> 31)
        digits += f"{total % 2**64:016x}"
    return digits


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 1001])
@pytest.mark.parametrize("chunk", [3, CHUNK])
def test_the_checksum_equals_the_same_arithmetic_with_integers(size, chunk):
    data = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    assert checksum.checksum(data, chunk) == by_hand(bytes(data.tolist()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_changed_and_moved_elements_change_the_checksum(dtype):
    tensor = torch.arange(1, 121).reshape(10, 12).to(dtype)
    before = checksum.checksum(tensor)
    for change in (
        lambda t: t[3, 4].add_(1),
        lambda t: t[9, 11].zero_(),
        lambda t: t.copy_(t.roll(1)),
        lambda t: t.copy_(t.flip(0)),
    ):
        other = tensor.clone()
        change(other)
        assert checksum.checksum(other) != before
    assert checksum.checksum(tensor.clone()) == before


def test_signed_zeros_differ_and_nans_are_equal():
    assert checksum.checksum(torch.tensor([0.0, 1.0])) != checksum.checksum(torch.tensor([-0.0, 1.0]))
    assert checksum.checksum(torch.tensor([float("nan")])) == checksum.checksum(torch.tensor([float("nan")]))


def test_a_view_is_read_in_the_order_of_its_rows():
    tensor = torch.arange(12.0).reshape(3, 4)
    assert checksum.checksum(tensor.T) == checksum.checksum(tensor.T.contiguous()) != checksum.checksum(tensor)


def test_a_slice_may_start_at_any_element():
    tensor = torch.arange(40.0)
    assert checksum.checksum(tensor[1:31]) == checksum.checksum(tensor[1:31].clone())


def test_digests_of_large_tensors_are_computed_on_the_gpu():
    small, large = torch.zeros(4), torch.zeros(observer.LARGE // 4 + 1)
    assert not observer.stays_on_device(small) and not observer.stays_on_device(large)
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: only tensors on a GPU are digested there")
    assert observer.stays_on_device(large.cuda()) and not observer.stays_on_device(small.cuda())
    assert observer.digest(large.cuda()) == observer.digest(large.cuda()) != observer.digest(large.cuda() + 1)
