"""Blocks and chunks of GIF, WebP and BMP; and the number of reads of any file."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from model.images.containers import gif, source, webp
from model.images.containers.gif import read_gif
from model.images.containers.source import open_in_memory
from model.images.containers.webp import read_webp
from service.errors import InvalidImage, UnsupportedImage
from tests.support.decoder_images import LIMITS, corners, encode, upright

PIXELS = np.asarray(corners())
FRAMES = [corners().rotate(180), corners().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
GIF = encode(corners(), "GIF")
GIF_HEAD = 13 + (3 << ((GIF[10] & 7) + 1))  # header and palette
WEBP = encode(corners(), "WEBP", lossless=True)


def test_extension_blocks_of_a_gif_do_not_matter() -> None:
    comment = b"!\xfe" + b"\xff" * 256 * 10 + b"\x00"
    for extension in (
        comment * 20,
        b"!\xff\x0bXMP DataXMP" + b"\x01a" * 1000 + b"\x00",
        b"!\xfe\x00",
    ):
        data = GIF[:GIF_HEAD] + extension + GIF[GIF_HEAD:]
        np.testing.assert_array_equal(upright(data), PIXELS)
        assert len(read_gif(data, LIMITS).data) <= len(GIF) + 8


def test_the_number_of_blocks_of_a_gif_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gif, "_MAX_BLOCKS", 100)
    for flood in (b"!\xfe" + b"\x01a" * 101 + b"\x00", b"!\xfe\x00" * 101):
        with pytest.raises(InvalidImage, match="more than 100 blocks"):
            upright(GIF[:GIF_HEAD] + flood + GIF[GIF_HEAD:])


@pytest.mark.parametrize("cut", [1, 2])
def test_the_end_of_a_gif_may_be_missing(cut: int) -> None:
    np.testing.assert_array_equal(upright(GIF[:-cut]), PIXELS)
    animated = encode(corners(), "GIF", save_all=True, append_images=FRAMES)
    np.testing.assert_array_equal(upright(animated[: len(animated) // 2]), PIXELS)


def test_the_transparency_of_the_first_frame_of_a_gif_is_kept() -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    data = encode(palette, "GIF", transparency=1, comment=b"x" * 5000)
    assert (upright(data) == 255).all()


def test_a_gif_is_white_where_its_first_frame_has_no_pixels() -> None:
    data = bytearray(GIF)
    data[6:10] = struct.pack("<2H", 60, 50)  # the screen
    at = GIF.index(b",", GIF_HEAD) + 1
    data = data[:at] + struct.pack("<2H", 7, 9) + GIF[at + 4 :]
    pixels = upright(bytes(data))
    assert pixels.shape == (50, 60, 3)
    np.testing.assert_array_equal(pixels[9:29, 7:47], PIXELS)
    pixels = pixels.copy()
    pixels[9:29, 7:47] = 255
    assert (pixels == 255).all()


def _webp_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def _with_webp_chunk(data: bytes, chunk: bytes) -> bytes:
    body = data[8:] + chunk
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("kind", [b"EXIF", b"XMP ", b"ICCP", b"abcd"])
@pytest.mark.parametrize("body", [b"", b"\x00", b"garbage", bytes(1 << 20)], ids=len)
def test_metadata_of_a_webp_does_not_matter(kind: bytes, body: bytes) -> None:
    extended = encode(corners(), "WEBP", lossless=True, exif=b"Exif\x00\x00garbage")
    for data in (WEBP, extended):
        changed = _with_webp_chunk(data, _webp_chunk(kind, body))
        np.testing.assert_array_equal(upright(changed), PIXELS)


def test_only_the_first_frame_of_a_webp_reaches_the_decoder() -> None:
    options = {"save_all": True, "append_images": FRAMES * 20, "lossless": True}
    data = encode(corners(), "WEBP", **options)
    np.testing.assert_array_equal(upright(data), PIXELS)
    assert bytes(read_webp(data, LIMITS).data).count(b"ANMF") == 1


def test_the_number_of_chunks_of_a_webp_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webp, "_MAX_CHUNKS", 100)
    with pytest.raises(InvalidImage, match="more than 100 chunks"):
        upright(_with_webp_chunk(WEBP, _webp_chunk(b"abcd", b"") * 100))


def test_a_truncated_webp_is_named_so() -> None:
    for data in (WEBP[:-4], WEBP[: len(WEBP) // 2]):
        with pytest.raises(InvalidImage, match="WEBP image cannot be decoded: it is truncated"):
            upright(data)


def _bmp_v4(alpha: np.ndarray) -> bytes:
    bgra = np.dstack([PIXELS[..., ::-1], alpha])[::-1].astype(np.uint8)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 40, 20, 1, 32, 3, 0, 0, 0, 0, 0) + masks + bytes(52)
    return struct.pack("<2sIHHI", b"BM", 0, 0, 0, 14 + 108) + header + bgra.tobytes()


def test_alpha_of_a_bmp_that_is_zero_everywhere_is_ignored() -> None:
    np.testing.assert_array_equal(upright(_bmp_v4(np.zeros((20, 40)))), PIXELS)


def test_alpha_of_a_bmp_that_is_not_zero_everywhere_counts() -> None:
    alpha = np.zeros((20, 40))
    alpha[:, 20:] = 255
    pixels = upright(_bmp_v4(alpha))
    np.testing.assert_array_equal(pixels[:, 20:], PIXELS[:, 20:])
    assert (pixels[:, :20] == 255).all()


def test_the_padding_of_the_last_row_of_a_bmp_may_be_missing() -> None:
    image = corners().resize((41, 20))  # 123 bytes in a row, and one of padding
    data = encode(image, "BMP")
    np.testing.assert_array_equal(upright(data[:-1]), np.asarray(image))
    with pytest.raises(InvalidImage, match="truncated"):
        upright(data[:-2])


def test_bit_fields_that_are_not_supported_are_named() -> None:
    data = bytearray(_bmp_v4(np.zeros((20, 40))))
    data[54:70] = struct.pack("<4I", 0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000)
    with pytest.raises(UnsupportedImage, match="BMP is not supported: Unsupported BMP bitfields"):
        upright(bytes(data))


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF"])
def test_the_number_of_reads_is_limited(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_MAX_READS", 100)
    file = open_in_memory(name, bytes(101))
    for _ in range(100):
        assert file.read(1) == b"\0"
    with pytest.raises(InvalidImage, match="too many pieces"):
        file.read(1)


def test_a_jpeg_of_fewer_bytes_than_reads_needs_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_MAX_READS", 100)
    assert open_in_memory("JPEG", bytes(100)).read() == bytes(100)
    assert type(open_in_memory("JPEG", bytes(100))) is not source.ReadLimitedFile
    assert type(open_in_memory("PNG", bytes(100))) is source.ReadLimitedFile
