from __future__ import annotations

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from model.images.pixel_memory import samples_of, store_images_in_one_block
from model.images.resize import resize_bilinear

_MIB = 1 << 20
_core = Image.core  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def blocks_as_before() -> Iterator[None]:
    before = _core.get_block_size()
    yield
    _core.set_block_size(before)


def _noise(height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (480, 640), (2500, 3000)])
def test_the_samples_are_those_of_the_image(size: tuple[int, int]) -> None:
    store_images_in_one_block()
    pixels = _noise(*size)
    image = Image.fromarray(pixels)
    with samples_of(image) as address:
        assert address is not None
        del image  # the memory stays
        memory = (ctypes.c_uint8 * (size[0] * size[1] * 4)).from_address(address)
        np.testing.assert_array_equal(np.asarray(memory).reshape(*size, 4)[..., :3], pixels)


def test_an_image_in_several_blocks_has_no_address_and_is_resized_by_pillow() -> None:
    pixels = _noise(600, 800)
    _core.set_block_size(_MIB)
    split = Image.fromarray(pixels)
    store_images_in_one_block()
    whole = Image.fromarray(pixels)
    with samples_of(split) as several, samples_of(whole) as one:
        assert several is None
        assert one is not None
    np.testing.assert_array_equal(
        resize_bilinear(split, 300, 400), resize_bilinear(whole, 300, 400)
    )
