"""JPEGs that are decoded to a fraction of their size: nearly the same pixels, the same errors."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from model.config import ModelConfig
from model.geometry import resized_size
from model.images import fast_jpeg
from model.images.decode import (
    Cost,
    CostsMore,
    DecodedImage,
    JpegDecoding,
    decode_image,
    open_for_model,
)
from model.images.errors import DetectionError
from model.images.fast_jpeg import choose_samples
from service.rest.pages import STATIC_DIR
from tests.support.corpus.opencv_files import opencv_files
from tests.support.corpus.own_files import own_files
from tests.support.corpus.pillow_files import pillow_files
from tests.support.corpus.scene import CorpusFile
from tests.support.decoder_images import LIMITS, encode
from tests.support.image_pieces import after_jpeg_start, jpeg_segment

pytestmark = pytest.mark.skipif(not fast_jpeg.available(), reason="simplejpeg is not installed")
SMALL = ModelConfig(shortest_side=4, longest_side=8)  # all files here are scaled for it
MODES: tuple[JpegDecoding, JpegDecoding] = ("exact", "scaled")
NOISE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (45, 61, 3), np.uint8))
SMOOTH = Image.linear_gradient("L").resize((61, 45)).convert("RGB")
PHOTOS = sorted(STATIC_DIR.glob("samples/*.jpg"))
# A gradient of 64 x 48 pixels that jpegtran wrote with arithmetic coding.
ARITHMETIC = base64.b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV01yid4h#wq4h;?x5fBp?C>j_R78o%jB^@X_Gd(;xGdMRuNL)@pL{~*OI8b"
    "d-S6^ahXlFi6ad~iLcwA*?WB=O#Lje&I5*QU2FB%#zV?sDWV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV`F1uV"
    "`F1uV`F1uV`F1uV`F1uV`Klx01*fPFaSUU0U`hb5di}c0sqVZ3IGrg1pyEd1^?Or3<CiG0ucid06zf#0C*m!-G@w"
    "r9^rAJE?k7uS{zEEXKy=80bF?R{1M43&s%y?U?z5{3G24<=29+!X$s0e=6)o4^lwrHm?kY;(J~dh)^Rwb^}c$)<|"
    "2fCr`<OC$Fa3BsdpK1GJS>+fdAP"
)


def _outcome(data: bytes, mode: JpegDecoding, rule: ModelConfig = SMALL) -> DecodedImage | str:
    try:
        return decode_image(data, rule, LIMITS, jpeg_decoding=mode)
    except DetectionError as error:
        return f"{type(error).__name__}: {error.detail}"


def _check_same(data: bytes, tolerance: float, name: str = "") -> bool:
    """Checks that both modes have the same outcome; returns whether it is an image."""
    exact, scaled = (_outcome(data, mode) for mode in MODES)
    if isinstance(exact, str) or isinstance(scaled, str):
        assert exact == scaled, name
        return False
    assert (exact.original_size, exact.format) == (scaled.original_size, scaled.format), name
    assert exact.pixels.shape == scaled.pixels.shape, name
    assert np.abs(exact.pixels.astype(int) - scaled.pixels).mean() <= tolerance, name
    return True


def test_the_smallest_faster_scale_that_is_large_enough_is_chosen() -> None:
    size = (4000, 3000)
    least = {(500, 375): 1, (501, 375): 2, (1000, 751): 3, (1501, 1): 4, (2000, 1500): 4}
    assert {each: choose_samples(size, each) for each in least} == least
    assert choose_samples(size, (2001, 1)) == 8  # 5, 6 and 7 take longer than the whole
    assert choose_samples(size, (9000, 9000)) == 8


def test_a_scaled_image_has_at_least_twice_the_sides_of_the_input() -> None:
    rng = np.random.default_rng(7)
    for width, height, short, more in rng.integers(1, (300, 300, 40, 40), (60, 4)).tolist():
        rule = ModelConfig(shortest_side=short, longest_side=short + more)
        data = encode(Image.new("RGB", (width, height), "teal"), "JPEG")
        image, _, original, _ = open_for_model(data, rule, LIMITS, jpeg_decoding="scaled")
        assert original == (height, width)
        needed = resized_size(height, width, short, short + more)
        if image.size != (width, height):
            assert image.height >= 2 * needed[0] and image.width >= 2 * needed[1]
            assert 2 * image.width <= width + 1 and 2 * image.height <= height + 1
        else:
            assert width < 4 * needed[1] or height < 4 * needed[0]


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
@pytest.mark.parametrize("sides", [(64, 96), (120, 160), (192, 256)], ids=str)
def test_pixels_of_photos_are_close_to_exact(photo: object, sides: tuple[int, int]) -> None:
    rule = ModelConfig(shortest_side=sides[0], longest_side=sides[1])
    data = photo.read_bytes()  # type: ignore[attr-defined]
    exact, scaled = (decode_image(data, rule, LIMITS, jpeg_decoding=mode) for mode in MODES)
    difference = np.abs(exact.pixels.astype(int) - scaled.pixels)
    assert 0 < difference.mean() < 2
    assert difference.max() <= 24


@pytest.mark.parametrize("size", [(1600, 1200), (1601, 1207), (1201, 1606)], ids=str)
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_pixels_of_smooth_images_are_close_to_exact(
    size: tuple[int, int], subsampling: str
) -> None:
    """Also at the right and the lower edge, if sides are no multiples of a block."""
    colours = Image.fromarray(np.random.default_rng(4).integers(0, 256, (4, 5, 3), np.uint8))
    data = encode(colours.resize(size, Image.Resampling.BICUBIC), "JPEG", subsampling=subsampling)
    rule = ModelConfig(shortest_side=200, longest_side=300)
    exact, scaled = (decode_image(data, rule, LIMITS, jpeg_decoding=mode) for mode in MODES)
    difference = np.abs(exact.pixels.astype(int) - scaled.pixels)
    assert difference.mean() < 0.7
    assert difference.max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encode(SMOOTH.crop((0, 0, 61, 30)), "JPEG", exif=exif)
    assert _check_same(file, 4)
    decoded = _outcome(file, "scaled")
    assert isinstance(decoded, DecodedImage)
    assert decoded.original_size == ((61, 30) if orientation >= 5 else (30, 61))


WAYS: dict[str, bytes] = {
    "baseline": encode(SMOOTH, "JPEG"),
    "progressive": encode(SMOOTH, "JPEG", progressive=True),
    "grey": encode(SMOOTH.convert("L"), "JPEG"),
    "CMYK": encode(SMOOTH.convert("CMYK"), "JPEG"),
    "RGB components": encode(SMOOTH, "JPEG", keep_rgb=True),
    "4:2:2": encode(SMOOTH, "JPEG", subsampling="4:2:2"),
    "restarts": encode(SMOOTH, "JPEG", restart_marker_blocks=1),
    "metadata": after_jpeg_start(encode(SMOOTH, "JPEG"), jpeg_segment(0xE2, bytes(30_000))),
    "appended": encode(SMOOTH, "JPEG") + b"more",
    "arithmetic": ARITHMETIC,
    "one row": encode(SMOOTH.resize((300, 1)), "JPEG"),
    "one column": encode(SMOOTH.resize((1, 300)), "JPEG"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_jpeg_is_nearly_the_same_image(way: str) -> None:
    assert _check_same(WAYS[way], 3)


def test_kinds_that_are_scaled() -> None:
    for way, data in WAYS.items():
        scaled = open_for_model(data, SMALL, LIMITS, jpeg_decoding="scaled")
        is_smaller = scaled.image.size[::-1] != scaled.original_size
        # Pillow decodes CMYK; the network's input of lines is not below half of them.
        assert is_smaller == (way not in {"CMYK", "one row", "one column"}), way


@pytest.mark.parametrize("frame", [b"\xc3", b"\xc5", b"\xcb", b"\xf7", b"12 bits", b"5 components"])
def test_unsupported_kinds_have_the_same_error(frame: bytes) -> None:
    data = encode(SMOOTH, "JPEG")
    at = data.index(b"\xff\xc0")
    if len(frame) == 1:
        data = data[: at + 1] + frame + data[at + 2 :]
    elif frame == b"12 bits":
        data = data[: at + 4] + b"\x0c" + data[at + 5 :]
    else:
        data = data[: at + 9] + b"\x05" + data[at + 10 :]
    assert not _check_same(data, 0)


@pytest.mark.parametrize("way", ["baseline", "progressive", "restarts", "CMYK", "arithmetic"])
def test_damaged_files_have_the_same_outcome(way: str) -> None:
    data = WAYS[way] if way != "baseline" else encode(NOISE, "JPEG")
    # Missing arithmetic codes are read as zeros, which give garbage of any frequency.
    tolerance = 255 if way == "arithmetic" else 6
    rng = np.random.default_rng(5)
    for cut in rng.integers(2, len(data), 25).tolist():
        _check_same(data[:cut], tolerance, f"cut at {cut}")
        _check_same(data[:cut] + b"\xff\xd9", tolerance, f"cut at {cut} with an end")
        overwritten = bytearray(data)
        overwritten[cut] ^= 1 << cut % 8
        _check_same(bytes(overwritten), tolerance, f"changed at {cut}")


def _jpegs(files: Callable[[], Iterable[CorpusFile]]) -> list[CorpusFile]:
    return [file for file in files() if file.data[:2] == b"\xff\xd8"]


@pytest.mark.filterwarnings("ignore")
def test_the_corpus_has_the_same_outcomes() -> None:
    files = [file for every in (pillow_files, opencv_files, own_files) for file in _jpegs(every)]
    assert len(files) > 30
    images = [_check_same(file.data, 8, file.name) for file in files]  # chroma of 1 x 4 pixels
    assert sum(images) > len(files) / 2


def test_limits_are_of_the_full_size() -> None:
    data = encode(SMOOTH, "JPEG")
    fewer = replace(LIMITS, max_pixels=61 * 45 - 1)
    details, costs = [], []
    for mode in MODES:
        with pytest.raises(DetectionError) as refused:
            decode_image(data, SMALL, fewer, jpeg_decoding=mode)
        details.append(refused.value.detail)
        with pytest.raises(CostsMore) as asked:
            decode_image(data, SMALL, LIMITS, Cost(1, 1.0), jpeg_decoding=mode)
        costs.append(asked.value.cost)
    assert details[0] == details[1] and costs[0] == costs[1]


def test_other_formats_are_decoded_exactly() -> None:
    for form in ("PNG", "WEBP", "BMP"):
        assert _check_same(encode(NOISE, form), 0)


def test_without_the_decoder_images_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_jpeg, "simplejpeg", None)
    assert _check_same(encode(NOISE, "JPEG"), 0)
