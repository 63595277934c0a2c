"""Image files of a data set; `tests/model/images/test_users_of_decode.py` has all formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data.annotations import DataError
from model.data.image_files import read_image, read_pixels
from model.images.decode import ImageLimits


def test_large_images_are_read_whole(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1501, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.bmp")
    np.testing.assert_array_equal(read_pixels(tmp_path / "large.bmp"), noise)


def test_limits_apply(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", ImageLimits(1000, 800)).size == (40, 20)
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image: .*at most 799"):
        read_image(tmp_path / "a.png", ImageLimits(1000, 799))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image: No such file"):
        read_pixels(tmp_path / "a.png")
