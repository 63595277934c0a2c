"""Kinds of images that take longer than others of their format are estimated to."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from model.images.decode import Cost, CostsMore, open_upright
from model.images.limits import ImageLimits
from tests.support.image_pieces import tiff_file

_LIMITS = ImageLimits(max_bytes=10**7, max_pixels=10**7)
_SIDE = 64


def _seconds_per_pixel(data: bytes) -> float:
    with pytest.raises(CostsMore) as raised:
        open_upright(data, _LIMITS, Cost(0, 0.0))
    return raised.value.cost.seconds / _SIDE**2


def _tiff(bits: int, samples: int, photometric: int) -> bytes:
    strip = zlib.compress(bytes(_SIDE * _SIDE * samples * bits // 8))
    entries = {
        256: (4, [_SIDE]),
        257: (4, [_SIDE]),
        258: (3, [bits] * samples),
        259: (3, [8]),
        262: (3, [photometric]),
        273: (4, [16]),
        277: (3, [samples]),
        278: (4, [_SIDE]),
        279: (4, [len(strip)]),
    }
    return tiff_file(entries, strip)


def _png(mode: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (_SIDE, _SIDE)).save(file, "PNG", **options)
    return file.getvalue()


def _deep_png_with_a_transparent_colour() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">2I5B", _SIDE, _SIDE, 16, 2, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + 6 * _SIDE) * _SIDE))
    parts = ((b"IHDR", header), (b"tRNS", bytes(6)), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in parts)


def _run_length_bmp() -> bytes:
    palette = bytes(1024)
    rows = b"\x01\x00\x00\x00" * _SIDE + b"\x00\x01"  # a pixel, then the end of the line
    start = 54 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, _SIDE, _SIDE, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + palette + rows


def test_samples_of_other_depths_take_longer() -> None:
    plain = _seconds_per_pixel(_tiff(8, 4, 5))
    assert _seconds_per_pixel(_tiff(24, 4, 5)) > plain + 60e-9
    assert _seconds_per_pixel(_tiff(12, 3, 2)) > _seconds_per_pixel(_tiff(8, 3, 2)) + 40e-9


def test_a_transparent_colour_of_deep_samples_takes_longer() -> None:
    data = _deep_png_with_a_transparent_colour()
    assert np.asarray(open_upright(data, _LIMITS)[0]).min() == 255  # all transparent, on white
    assert _seconds_per_pixel(data) > _seconds_per_pixel(_png("RGB")) + 100e-9


def test_run_lengths_take_longer() -> None:
    data = _run_length_bmp()
    open_upright(data, _LIMITS)
    assert _seconds_per_pixel(data) > 150e-9
