"""JPEG files that have an end marker but lack pixels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.images import fast_jpeg
from model.images.decode import open_upright
from model.images.errors import InvalidImage
from model.images.limits import Cost, CostsMore, ImageLimits

pytestmark = pytest.mark.skipif(not fast_jpeg.available(), reason="simplejpeg is missing")

_LIMITS = ImageLimits(max_bytes=10**7, max_pixels=10**6)
_END = b"\xff\xd9"
_KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
}


def _jpeg(mode: str, kind: str) -> bytes:
    rng = np.random.default_rng(4)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((160, 120)).convert(mode).save(file, "JPEG", quality=90, **_KINDS[kind])
    return file.getvalue()


def _accepts(data: bytes) -> bool:
    try:
        open_upright(data, _LIMITS)
    except InvalidImage:
        return False
    return True


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_an_end_marker_does_not_replace_pixels(mode: str, kind: str) -> None:
    data = _jpeg(mode, kind)
    half = data[: len(data) // 2]
    assert not _accepts(half + _END)
    assert not _accepts(half + _END + b"another file" + data)
    assert not _accepts(half)


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_zeros_do_not_replace_pixels(mode: str, kind: str) -> None:
    data = _jpeg(mode, kind)
    half = len(data) // 2
    assert not _accepts(data[:half] + bytes(len(data) - half) + _END)


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_complete_files_are_accepted_whatever_surrounds_their_end(mode: str, kind: str) -> None:
    data = _jpeg(mode, kind)
    expected = np.asarray(open_upright(data, _LIMITS)[0])
    for whole in (data[:-2], data[:-2] + b"abcdef" + _END, data + b"\xff\xd8 more" + _END):
        assert np.array_equal(np.asarray(open_upright(whole, _LIMITS)[0]), expected)


def test_a_baseline_file_that_breaks_off_in_the_middle_is_refused() -> None:
    data = _jpeg("RGB", "baseline")
    half = len(data) // 2
    assert not _accepts(data[:half] + b"\xff\x01" + data[half + 2 :])


def test_comparing_takes_several_decodings() -> None:
    data = _jpeg("RGB", "baseline")
    costs = []
    for each in (data, data[:-2]):
        with pytest.raises(CostsMore) as raised:
            open_upright(each, _LIMITS, granted=Cost(0, 0.0))
        costs.append(raised.value.cost.seconds)
    assert costs[1] > 2.5 * costs[0]
