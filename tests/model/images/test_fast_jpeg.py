"""libjpeg-turbo's own interface gives Pillow's pixels, or leaves the file to Pillow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.images import decode, fast_jpeg
from model.images.errors import InvalidImage
from model.images.fast_jpeg import EndsEarly, decode_jpeg
from model.images.limits import ImageLimits

pytestmark = pytest.mark.skipif(not fast_jpeg.available(), reason="simplejpeg is not installed")
LIMITS = ImageLimits(10**7, 10**7)
SIZES = [(1, 1), (1, 40), (7, 3), (16, 16), (33, 17), (130, 95)]


def _jpeg(size: tuple[int, int], mode: str = "RGB", **options: Any) -> bytes:
    rng = np.random.default_rng(sum(size))
    coarse = rng.integers(0, 256, (4, 5, 4), dtype=np.uint8)
    image = Image.fromarray(coarse, "CMYK").convert("RGB").resize(size).convert(mode)
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def _by_pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_pixels_are_those_of_pillow(
    size: tuple[int, int], mode: str, progressive: bool, subsampling: str
) -> None:
    for quality in (20, 95):
        data = _jpeg(size, mode, quality=quality, progressive=progressive, subsampling=subsampling)
        image = decode_jpeg(data, mode, size)
        assert image is not None and (image.mode, image.size) == ("RGB", size)
        np.testing.assert_array_equal(np.asarray(image), _by_pillow(data))


@pytest.mark.parametrize(
    "options",
    [
        {"restart_marker_blocks": 1},
        {"restart_marker_rows": 2},
        {"optimize": True},
        {"keep_rgb": True},
        {"comment": b"text" * 5000},
    ],
    ids=str,
)
def test_other_options_of_encoders(options: dict[str, Any]) -> None:
    data = _jpeg((70, 50), **options)
    image = decode_jpeg(data, "RGB", (70, 50))
    assert image is not None
    np.testing.assert_array_equal(np.asarray(image), _by_pillow(data))


def test_cmyk_is_left_to_pillow() -> None:
    assert decode_jpeg(_jpeg((20, 20), "CMYK"), "CMYK", (20, 20)) is None


def test_a_damaged_file_is_left_to_pillow() -> None:
    data = _jpeg((130, 95), quality=95)
    assert decode_jpeg(b"", "RGB", (130, 95)) is None
    assert decode_jpeg(data[: len(data) // 2], "RGB", (130, 95)) is None


def test_a_file_whose_data_end_early_is_told_apart() -> None:
    data = _jpeg((130, 95), quality=95)
    middle = len(data) // 2
    with pytest.raises(EndsEarly):
        decode_jpeg(data[:middle] + b"\xff\xd9" + data[middle + 2 :], "RGB", (130, 95))


def test_a_file_of_another_size_is_left_to_pillow() -> None:
    data = _jpeg((20, 10))
    assert decode_jpeg(data, "RGB", (10, 20)) is None
    assert decode_jpeg(data, "RGB", (5, 5)) is None


def _outcome(data: bytes) -> np.ndarray | str:
    try:
        return np.asarray(decode.open_upright(data, LIMITS)[0])
    except InvalidImage as error:
        return str(error)


def test_a_damaged_file_has_the_same_outcome_with_and_without_the_decoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = _jpeg((130, 95), quality=95)
    middle = len(data) // 2
    for damaged in (data[:middle], data[:40], data + b"more"):
        found = _outcome(damaged)
        with monkeypatch.context() as without:
            without.setattr(fast_jpeg, "simplejpeg", None)
            np.testing.assert_array_equal(found, _outcome(damaged))


def test_without_the_decoder_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _jpeg((33, 17))
    fast = decode.open_upright(data, LIMITS)[0]
    monkeypatch.setattr(fast_jpeg, "simplejpeg", None)
    np.testing.assert_array_equal(
        np.asarray(fast), np.asarray(decode.open_upright(data, LIMITS)[0])
    )
