"""Sizes in the headers of image files, which checks of a data set read."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from model.data.errors import DataError
from model.data.image_files import read_image, read_size
from model.images import heif_decoders
from tests.support.heif_files import encoded, prop, with_properties


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_size_of_a_rotated_and_cropped_image_is_that_of_its_pixels(
    form: str, tmp_path: Path
) -> None:
    file = tmp_path / "photo"
    crop = prop(b"clap", struct.pack(">IIIIiIiI", 100, 1, 40, 1, 0, 1, 0, 1))
    data = encoded(form)  # 128 x 64
    for added, expected in (
        ([], (128, 64)),
        ([prop(b"irot", b"\x02")], (128, 64)),
        ([prop(b"irot", b"\x01")], (64, 128)),
        ([crop, prop(b"irot", b"\x01")], (40, 100)),
    ):
        file.write_bytes(with_properties(form, data, *added))
        size = read_size(file)
        assert (size.width, size.height) == read_image(file).size == expected
        assert size.turned == any(each.kind == b"irot" for each in added)
        assert size.sides_swapped == (expected[0] < expected[1])


def test_size_of_an_image_without_a_decoder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "photo.heic"
    file.write_bytes(encoded("HEIF"))
    monkeypatch.setattr(heif_decoders, "has_decoder", lambda _: False)
    with pytest.raises(DataError, match=r"photo.heic .* the extra heic"):
        read_size(file)
