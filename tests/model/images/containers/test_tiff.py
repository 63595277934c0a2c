"""Directories of TIFF: bounds of memory and work, kinds that are refused, kinds that are read."""

from __future__ import annotations

import time
import tracemalloc
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from model.images import decode
from model.images.containers.tiff import read_tiff
from model.images.decode import Cost, CostsMore, decode_image, open_upright
from service.errors import DetectionError, ImageTooLarge, InvalidImage, UnsupportedImage
from tests.support.decoder_images import CONFIG, LIMITS, corners, upright
from tests.support.image_pieces import tiff_file

PIXELS = np.asarray(corners())
Entries = dict[int, tuple[int, Sequence[int] | bytes]]
_FORMATS = pytest.mark.parametrize(
    ("order", "is_big"), [("<", False), (">", False), ("<", True), (">", True)]
)


def rgb(width: int, height: int, **changes: tuple[int, Sequence[int] | bytes]) -> Entries:
    """Entries of an RGB image of one strip, with changes such as `tag_259=(3, [8])`."""
    entries: Entries = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8, 8, 8]),
        259: (3, [1]),
        262: (3, [2]),
        273: (4, [16]),
        277: (3, [3]),
        278: (4, [height]),
        279: (4, [width * height * 3]),
    }
    return entries | {int(tag.removeprefix("tag_")): entry for tag, entry in changes.items()}


def tiled(width: int, height: int, tile: tuple[int, int], offsets: int, byte_count: int) -> Entries:
    """Entries of an RGB image in tiles that are all at the same place in the file."""
    entries = rgb(
        width,
        height,
        tag_259=(3, [8]),
        tag_322=(4, [tile[0]]),
        tag_323=(4, [tile[1]]),
        tag_324=(4, [16] * offsets),
        tag_325=(4, [byte_count] * offsets),
    )
    return {tag: entry for tag, entry in entries.items() if tag not in {273, 278, 279}}


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a file was opened for decoding that should have been refused")

    monkeypatch.setattr(decode, "_open", fail)


@_FORMATS
def test_a_file_of_each_kind_is_read(order: str, is_big: bool) -> None:
    data = tiff_file(rgb(40, 20), PIXELS.tobytes(), order=order, is_big=is_big)
    np.testing.assert_array_equal(upright(data), PIXELS)


@pytest.mark.usefixtures("no_decoding")
@_FORMATS
@pytest.mark.parametrize("tile", [(24_000, 24_000), (2_000_016, 1), (1, 1 << 31), (16, 200_000)])
def test_a_tile_that_is_larger_than_every_image_is_refused(
    tile: tuple[int, int], order: str, is_big: bool
) -> None:
    pixels = zlib.compress(bytes(1000))
    data = tiff_file(tiled(16, 16, tile, 1, len(pixels)), pixels, order=order, is_big=is_big)
    with pytest.raises(ImageTooLarge, match="tiles of"):
        open_upright(data, LIMITS)


@pytest.mark.usefixtures("no_decoding")
def test_tiles_count_with_all_their_pixels() -> None:
    pixels = zlib.compress(bytes(1000))
    data = tiff_file(tiled(16, 90_000, (1024, 16), 5625, len(pixels)), pixels)
    with pytest.raises(ImageTooLarge, match="5625 tiles of 1024 x 16"):
        open_upright(data, LIMITS)


@pytest.mark.usefixtures("no_decoding")
@_FORMATS
def test_tiles_over_the_same_bytes_are_refused(order: str, is_big: bool) -> None:
    pixels = zlib.compress(np.random.default_rng(0).bytes(200_000))
    data = tiff_file(
        tiled(16, 96_000, (16, 16), 6000, len(pixels)), pixels, order=order, is_big=is_big
    )
    with pytest.raises(InvalidImage, match="1200"):
        open_upright(data, LIMITS)


@pytest.mark.usefixtures("no_decoding")
def test_strips_over_the_same_bytes_are_refused() -> None:
    pixels = zlib.compress(np.random.default_rng(0).bytes(200_000))
    rows = 2000
    data = tiff_file(
        rgb(
            1,
            rows,
            tag_259=(3, [8]),
            tag_273=(4, [16] * rows),
            tag_278=(4, [1]),
            tag_279=(4, [len(pixels)] * rows),
        ),
        pixels,
    )
    with pytest.raises(InvalidImage, match="the file has"):
        open_upright(data, LIMITS)


def test_tiles_of_the_same_content_may_share_their_bytes() -> None:
    pixels = zlib.compress(bytes([1, 2, 3]) * 256)
    data = tiff_file(tiled(160, 160, (16, 16), 100, len(pixels)), pixels)
    assert (upright(data) == [1, 2, 3]).all()


@pytest.mark.usefixtures("no_decoding")
def test_tiles_count_as_memory_and_time() -> None:
    pixels = zlib.compress(bytes(1000))
    data = tiff_file(tiled(16, 16, (1024, 1024), 1, len(pixels)), pixels)
    with pytest.raises(CostsMore) as error:
        decode_image(data, CONFIG, LIMITS, Cost(1 << 20, 1.0))
    assert error.value.cost.memory_bytes > 3 * 3 * 1024 * 1024
    with pytest.raises(CostsMore) as error:
        decode_image(data, CONFIG, LIMITS, Cost(1 << 30, 1e-3))
    assert 1e-3 < error.value.cost.seconds < 1


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize(
    "changes",
    [
        {"tag_277": (3, [17]), "tag_258": (3, [8] * 17)},
        {"tag_277": (4, [1 << 31])},
        {
            "tag_258": (3, [64] * 3),
            "tag_339": (3, [3] * 3),
            "tag_256": (4, [2000]),
            "tag_257": (4, [999]),
        },
    ],
)
def test_samples_are_bounded(changes: Mapping[str, tuple[int, Sequence[int]]]) -> None:
    with pytest.raises((ImageTooLarge, UnsupportedImage)):
        open_upright(tiff_file(rgb(40, 20, **changes), bytes(50_000_000)[: 1 << 20]), LIMITS)


@pytest.mark.usefixtures("no_decoding")
def test_too_many_strips_or_tags_are_refused() -> None:
    many = tiff_file(rgb(1, 1, tag_273=(4, bytes(4 * 200_000))), b"")
    with pytest.raises(InvalidImage, match="200000 strips"):
        open_upright(many, LIMITS)
    tags = {1000 + number: (3, [0]) for number in range(5000)}
    with pytest.raises(InvalidImage, match="5009 tags"):
        open_upright(tiff_file(rgb(1, 1) | tags, b""), LIMITS)


@pytest.mark.parametrize(
    "changes",
    [
        {"tag_34665": (4, [0xFFFFFF])},  # EXIF
        {"tag_34853": (4, [8])},  # GPS
        {"tag_330": (4, [1, 2, 3])},  # directories of other images
        {"tag_34675": (7, bytes(3_000_000))},  # ICC
        {"tag_700": (1, b"<not closed")},
        {"tag_33723": (4, bytes(400_000))},
        {"tag_270": (2, b"a comment without an end")},
        {"tag_37724": (7, b"8BIM")},  # Photoshop
    ],
)
def test_metadata_does_not_matter(changes: Mapping[str, tuple[int, Sequence[int] | bytes]]) -> None:
    data = tiff_file(rgb(40, 20, **changes), PIXELS.tobytes())
    np.testing.assert_array_equal(upright(data), PIXELS)
    assert len(read_tiff(data, LIMITS).data) < len(data) + 400


@pytest.mark.parametrize("byte_counts", [[], [0], [1 << 30]])
def test_byte_counts_may_be_missing(byte_counts: list[int]) -> None:
    entries = rgb(40, 20, tag_279=(4, byte_counts))
    if not byte_counts:
        del entries[279]
    np.testing.assert_array_equal(upright(tiff_file(entries, PIXELS.tobytes())), PIXELS)


@pytest.mark.parametrize("change", [(4, [1 << 31]), (4, [0]), (4, [])])
@pytest.mark.parametrize("tag", [256, 257, 273, 278])
def test_impossible_values_are_refused_or_ignored(tag: int, change: tuple[int, list[int]]) -> None:
    data = tiff_file(rgb(40, 20) | {tag: change}, PIXELS.tobytes())
    try:
        pixels = upright(data)
    except DetectionError as error:
        assert tag != 278
        assert "header is broken" not in error.detail
    else:
        assert tag in {278, 273}
        assert pixels.shape == PIXELS.shape


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tag_259": (3, [34887])}, "compression 34887"),
        ({"tag_262": (3, [32803])}, "colour filter array"),
        ({"tag_262": (3, [8])}, r"L\*a\*b\*"),
        ({"tag_258": (3, [8, 8, 16])}, "different kinds"),
        ({"tag_258": (3, [7, 7, 7])}, "7 bits"),
        ({"tag_339": (3, [6, 6, 6])}, "complex"),
        ({"tag_277": (3, [2]), "tag_258": (3, [8, 8])}, "RGB, 2 samples"),
        ({"tag_50706": (1, [1, 4, 0, 0])}, "raw images of cameras"),
        ({"tag_254": (4, [1]), "tag_330": (4, [8])}, "raw images of cameras"),
        (
            {
                "tag_262": (3, [5]),
                "tag_277": (3, [4]),
                "tag_258": (3, [8] * 4),
                "tag_332": (3, [2]),
            },
            "inks",
        ),
        ({"tag_262": (3, [6]), "tag_258": (3, [16] * 3)}, "YCbCr"),
    ],
)
def test_kinds_that_are_not_supported_are_named(
    changes: Mapping[str, tuple[int, Sequence[int]]], named: str
) -> None:
    with pytest.raises(UnsupportedImage, match=named):
        upright(tiff_file(rgb(40, 20, **changes), bytes(10_000)))


def test_a_canon_raw_image_is_named() -> None:
    data = bytearray(tiff_file(rgb(40, 20), PIXELS.tobytes()))
    data[8:12] = b"CR\x02\x00"
    with pytest.raises(UnsupportedImage, match="Canon"):
        upright(bytes(data))


def test_the_worst_accepted_file_takes_the_time_of_its_pixels() -> None:
    """Tiles as large and as compressed as is accepted: at most twice the limit of pixels."""
    pixels = zlib.compress(bytes(1024 * 1024 * 3))
    data = tiff_file(tiled(1, 1024, (1024, 1024), 1, len(pixels)), pixels)
    started = time.process_time()
    tracemalloc.start()
    image, _ = open_upright(data, LIMITS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert image.size == (1, 1024)
    assert time.process_time() - started < 5
    assert peak < 1 << 24
