"""Segments and scans of JPEG: removed metadata, the number of scans, and a missing end."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from model.images.containers import jpeg
from model.images.containers.jpeg import read_jpeg
from model.images.decode import ImageLimits, decode_image
from service.errors import InvalidImage, UnsupportedImage
from tests.support.decoder_images import CONFIG, LIMITS, UINT8, corners, encode, upright
from tests.support.image_pieces import after_jpeg_start, jpeg_segment

CHUNK = 1 << 16
SCAN = b"\xff\xda\x00\x02"  # the marker and an empty segment
PLAIN = encode(corners(), "JPEG")
NOISE = Image.fromarray(np.random.default_rng(2).integers(0, 256, (40, 56, 3), np.uint8))
SMOOTH = Image.linear_gradient("L").resize((56, 40)).convert("RGB")


def jpeg_with_scans(count: int, distance: int, first: int) -> bytes:
    """Bytes with the structure of a JPEG, with scans at a distance in bytes."""
    data = bytearray(b"\xff\xd8" + bytes(first + count * distance))
    for number in range(count):
        at = first + number * distance
        data[at : at + len(SCAN)] = SCAN
    return bytes(data) + b"\xff\xd9"


def check_scans(data: bytes, max_scans: int) -> None:
    read_jpeg(data, ImageLimits(1 << 30, 1 << 30, max_scans))


@pytest.mark.parametrize("kind", [bytes, memoryview])
@pytest.mark.parametrize("first", [2, CHUNK - 2, CHUNK - 1, CHUNK])
def test_scans_are_counted_at_any_position(first: int, kind: type) -> None:
    """Also if a marker's two bytes are in two chunks."""
    data = kind(jpeg_with_scans(5, CHUNK, first))
    check_scans(data, 5)
    with pytest.raises(InvalidImage, match="more than 4 scans"):
        check_scans(data, 4)


@pytest.mark.parametrize(("progressive", "passes"), [(False, 1), (True, 10)])
def test_each_scan_of_a_progressive_image_is_a_pass(progressive: bool, passes: int) -> None:
    thumbnail = jpeg_segment(0xE1, b"Exif\x00\x00" + encode(corners(), "JPEG"))
    data = after_jpeg_start(encode(NOISE, "JPEG", progressive=progressive), thumbnail)
    assert passes <= read_jpeg(data, LIMITS).passes <= passes + 1


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xda", b"\xff\xd8", b"\xff\xd8\xff", PLAIN[:100]])
def test_a_few_bytes_have_no_scans(data: bytes) -> None:
    check_scans(data, 0)


@pytest.mark.parametrize(
    "segment",
    [
        jpeg_segment(0xE1, b"Exif\x00\x00" + bytes(9_000)),
        jpeg_segment(0xE1, b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff" + bytes(9_000)),
        jpeg_segment(0xE2, b"ICC_PROFILE\x00\x00\x00" + bytes(9_000)),
        jpeg_segment(0xE2, b"ICC_PROFILE\x00"),
        jpeg_segment(0xE2, b"MPF\x00II*\x00\xff\xff\xff\xff"),
        jpeg_segment(0xED, b"Photoshop 3.0\x008BIM"),
        jpeg_segment(0xFE, b"a comment"),
        jpeg_segment(0xE0, b""),
        jpeg_segment(0xEE, b""),
        b"\xff\xff\xff",
    ],
    ids=lambda segment: segment[1:16].hex(),
)
@pytest.mark.parametrize("times", [1, 100])
def test_metadata_does_not_matter(segment: bytes, times: int) -> None:
    data = after_jpeg_start(PLAIN, *[segment] * times)
    np.testing.assert_array_equal(upright(data), upright(PLAIN))


def test_metadata_never_reaches_the_decoder() -> None:
    data = after_jpeg_start(PLAIN, jpeg_segment(0xE1, b"Exif\x00\x00" + bytes(60_000)) * 60)
    source = read_jpeg(data, LIMITS)
    assert bytes(source.data) == PLAIN


@pytest.mark.parametrize("junk", [b"\xff", b"\x00", b"\xff\x00", b"\x00\xff\xff"])
def test_bytes_between_segments_never_reach_the_decoder(junk: bytes) -> None:
    """Millions of them take no longer than to search them."""
    segment = jpeg_segment(0xE5, b"")
    data = after_jpeg_start(PLAIN, segment, junk * (3_000_000 // len(junk)))
    assert bytes(read_jpeg(data, LIMITS).data) == PLAIN
    np.testing.assert_array_equal(upright(data), upright(PLAIN))


@pytest.mark.parametrize("junk", [b"\xff", b"\x00", b"\xff\xd0", b"\xff\xd0\x00"])
def test_bytes_in_place_of_the_end_marker_are_searched_once(junk: bytes) -> None:
    data = PLAIN[:-2] + junk * (2_000_000 // len(junk))
    np.testing.assert_array_equal(upright(data), upright(PLAIN))


def test_the_number_of_segments_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "_MAX_SEGMENTS", 100)
    upright(after_jpeg_start(PLAIN, jpeg_segment(0xE5, b"") * 90))
    with pytest.raises(InvalidImage, match="more than 100 segments"):
        upright(after_jpeg_start(PLAIN, jpeg_segment(0xE5, b"") * 100))


def _without_end(image: Image.Image, **options: object) -> tuple[bytes, UINT8]:
    data = encode(image, "JPEG", **options)
    assert data.endswith(b"\xff\xd9")
    return data[:-2], upright(data)


WAYS: dict[str, dict[str, object]] = {
    "baseline": {},
    "best quality": {"quality": 100, "subsampling": 0},
    "worst quality": {"quality": 1},
    "optimised tables": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "progressive with restarts": {"progressive": True, "restart_marker_blocks": 2},
}


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("image", [NOISE, SMOOTH], ids=["noise", "smooth"])
@pytest.mark.parametrize("way", WAYS)
def test_a_missing_end_marker_does_not_matter(way: str, image: Image.Image, mode: str) -> None:
    data, pixels = _without_end(image.convert(mode), **WAYS[way])
    for end in (b"", b"\xff", bytes(100), b"\r\n", b"appended text"):
        np.testing.assert_array_equal(upright(data + end), pixels)
    decoded = decode_image(memoryview(data), CONFIG, LIMITS)
    assert decoded.original_size == (40, 56)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("image", [NOISE, SMOOTH], ids=["noise", "smooth"])
@pytest.mark.parametrize("way", WAYS)
def test_missing_pixels_are_not_accepted(way: str, image: Image.Image, mode: str) -> None:
    """A file that is accepted has all its pixels: the bytes that it lacks do not matter."""
    data, pixels = _without_end(image.convert(mode), **WAYS[way])
    last = len(data) - data.index(b"\xff\xda") - 14
    for cut in [*range(1, min(24, last)), *range(24, last, 1 + last // 20)]:
        try:
            found = upright(data[:-cut])
        except InvalidImage:
            continue
        np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("way", WAYS)
def test_a_quarter_of_the_pixels_may_not_be_missing(way: str) -> None:
    data, _ = _without_end(NOISE, **WAYS[way])
    with pytest.raises(InvalidImage, match="truncated"):
        upright(data[: len(data) * 3 // 4])


def test_scans_of_a_progressive_jpeg_may_not_be_missing() -> None:
    data, _ = _without_end(NOISE, progressive=True)
    positions = [match.start() for match in jpeg._NEXT.finditer(data) if match[0] == b"\xff\xda"]
    assert len(positions) > 5
    for position in positions[1:]:
        tables = data.rfind(b"\xff\xc4", 0, position)
        with pytest.raises(InvalidImage, match="truncated"):
            upright(data[:tables])


@pytest.mark.parametrize(
    ("marker", "head", "message"),
    [
        (0xC1, b"\x0c\x00\x10\x00\x10\x03", "12 bits per sample"),
        (0xC0, b"\x08\x00\x10\x00\x10\x02", "2 components"),
        (0xC3, b"\x10\x00\x10\x00\x10\x01", "lossless"),
        (0xC3, b"\x08\x00\x10\x00\x10\x03", "lossless"),
        (0xC5, b"\x08\x00\x10\x00\x10\x03", "hierarchical"),
        (0xF7, b"\x08\x00\x10\x00\x10\x03", "JPEG-LS"),
    ],
)
def test_kinds_that_are_not_supported_are_named(marker: int, head: bytes, message: str) -> None:
    components = bytes((1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0))
    data = (
        b"\xff\xd8" + jpeg_segment(marker, head + components[: 3 * head[-1]]) + SCAN + b"\xff\xd9"
    )
    with pytest.raises(UnsupportedImage, match=message):
        upright(data)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_goes_before_xmp(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    other = orientation % 8 + 1
    xmp = f'<a tiff:Orientation="{other}"/>'.encode()
    both = encode(corners(), "JPEG", exif=exif, xmp=xmp)
    np.testing.assert_array_equal(upright(both), upright(encode(corners(), "JPEG", exif=exif)))


@pytest.mark.parametrize(
    "xmp",
    [
        '<a tiff:Orientation="6"/>',
        "<a tiff:Orientation='6'/>",
        '<a tiff:Orientation = "6"/>',
        "<tiff:Orientation>6</tiff:Orientation>",
    ],
)
def test_xmp_is_read_where_exif_states_no_orientation(xmp: str) -> None:
    for exif in (b"", b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x00\x00", b"Exif\x00\x00garbage"):
        data = encode(corners(), "JPEG", xmp=xmp.encode(), exif=exif)
        assert upright(data).shape == (40, 20, 3)
