"""Numbers of any count of bits, unpacked from bytes."""

from __future__ import annotations

import numpy as np
import pytest

from model.images.tiff_samples import _unpacked


@pytest.mark.parametrize("bits", range(1, 33))
@pytest.mark.parametrize("count", [1, 7, 16])
def test_numbers_are_those_of_their_bits(bits: int, count: int) -> None:
    rng = np.random.default_rng(bits)
    rows = rng.integers(0, 256, (3, 2, -(-bits * count // 8)), dtype=np.uint8)
    flags = np.unpackbits(rows, axis=-1)
    count = flags.shape[-1] // bits
    flags = flags[..., : count * bits].reshape(3, 2, count, bits).astype(np.uint64)
    expected = flags @ (np.uint64(1) << np.arange(bits, dtype=np.uint64)[::-1])
    assert np.array_equal(_unpacked(rows, bits, swapped=False), expected)


def test_bytes_of_a_number_can_be_swapped() -> None:
    numbers = np.array([[1, 0x123456, 0xFFFFFE]], "<u4")
    rows = np.ascontiguousarray(numbers.view(np.uint8).reshape(1, 3, 4)[..., :3]).reshape(1, 9)
    assert np.array_equal(_unpacked(rows, 24, swapped=True), numbers)
