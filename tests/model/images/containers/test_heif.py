"""AVIF and HEIC: structure, orientation, limits; compared with what libavif and libheif read."""

from __future__ import annotations

import io
import itertools
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from model.images import heif_decoders
from model.images.containers import coded_pictures, heif, iso_boxes
from model.images.containers.heif import read_heif, read_heif_size
from model.images.containers.heif_writer import NewItem, heif_file
from model.images.containers.iso_boxes import box, full_box
from model.images.decode import ImageLimits, open_upright
from model.images.errors import DetectionError
from service.errors import ImageTooLarge, InvalidImage, UnsupportedImage
from tests.support.decoder_images import LIMITS, UINT8, corners, upright
from tests.support.heif_files import (
    CODECS,
    encoded,
    first_item,
    grid,
    items_of,
    prop,
    size,
    with_exif,
    with_properties,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

FORMS = ("AVIF", "HEIF")
FILES = {form: encoded(form) for form in FORMS}
TILES = {form: encoded(form, corners().resize((64, 64))) for form in FORMS}
SCENE = np.asarray(corners().resize((128, 64), Image.Resampling.NEAREST))
ROTATIONS = [[prop(b"irot", bytes([turns]))] for turns in range(4)]
MIRRORINGS = [[prop(b"imir", bytes([axis]))] for axis in range(2)]
ROTATED_THEN_MIRRORED = [[*one, *other] for one in ROTATIONS for other in MIRRORINGS]
MIRRORED_THEN_ROTATED = [[*one, *other] for one in MIRRORINGS for other in ROTATIONS]


def read_by_library(data: bytes) -> UINT8:
    """As libavif or libheif and their plugins read it, without our reader."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def assert_close(pixels: UINT8, expected: UINT8, tolerance: int = 4) -> None:
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("form", FORMS)
def test_orientation_is_that_of_the_library(form: str) -> None:
    seen = set()
    for added in (*ROTATIONS, *MIRRORINGS, *ROTATED_THEN_MIRRORED):
        data = with_properties(form, FILES[form], *added)
        pixels = upright(data)
        assert_close(pixels, read_by_library(data), 2)
        (width, height), orientation = read_heif_size(data)
        assert pixels.shape[:2] == ((width, height) if orientation >= 5 else (height, width))
        seen.add(orientation)
    assert seen == set(range(1, 9))


def test_transformations_are_applied_in_their_order() -> None:
    # libavif ignores the order, which its own standard prescribes: rotate, then mirror.
    for added in MIRRORED_THEN_ROTATED:
        by_library = read_by_library(with_properties("HEIF", FILES["HEIF"], *added))
        for form in FORMS:
            assert_close(upright(with_properties(form, FILES[form], *added)), by_library)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("added", [[], ROTATIONS[1]], ids=["without irot", "with irot"])
def test_orientation_of_exif_does_not_count(form: str, added: list) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = with_exif(form, FILES[form], exif.tobytes()[6:], *added)
    assert_close(upright(data), read_by_library(data), 2)
    assert_close(upright(data), np.rot90(SCENE) if added else SCENE)


def test_a_phone_s_rotated_image_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for form in FORMS:  # the encoders write it as irot or rotate the pixels
        assert_close(upright(encoded(form, exif=exif.tobytes())), np.rot90(SCENE, -1))


def test_the_clean_aperture_is_cut_out() -> None:
    for width, height, right, down in ((100, 40, 0, 0), (64, 31, 10, -3), (127, 63, 0, 0)):
        body = struct.pack(">IIIIiIiI", width, 1, height, 1, right * 2, 2, down * 2, 2)
        added = (prop(b"clap", body), *ROTATIONS[1])
        data = with_properties("HEIF", FILES["HEIF"], *added)
        assert_close(upright(data), read_by_library(data), 2)
        assert upright(with_properties("AVIF", FILES["AVIF"], *added)).shape == (width, height, 3)
    for body in (bytes(32), struct.pack(">IIIIiIiI", 8, 1, 8, 1, 10**9, 1, 0, 1)):
        with pytest.raises(InvalidImage, match="clean aperture"):
            upright(with_properties("HEIF", FILES["HEIF"], prop(b"clap", body)))
    whole = struct.pack(">IIIIiIiI", 8, 1, 8, 1, 0, 1, 0, 1)
    with pytest.raises(UnsupportedImage, match="rotated and then cropped"):
        upright(with_properties("HEIF", FILES["HEIF"], *ROTATIONS[1], prop(b"clap", whole)))


@pytest.mark.parametrize("form", FORMS)
def test_tiles_are_put_together(form: str) -> None:
    colours = ["red", "lime", "blue", "yellow", "black", "white"]
    tiles = [encoded(form, Image.new("RGB", (64, 64), colour)) for colour in colours]
    data = grid(form, tiles, 2, 3, (180, 100))
    pixels = upright(data)
    assert pixels.shape == (100, 180, 3)
    assert_close(pixels, read_by_library(data), 2)
    for (row, column), colour in zip(itertools.product(range(2), range(3)), colours, strict=True):
        expected = np.asarray(Image.new("RGB", (1, 1), colour))[0, 0]
        assert_close(pixels[64 * row + 20, 64 * column + 20], expected, 5)


def test_tiles_of_libheif_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    monkeypatch.setattr(pillow_heif.options, "GRID_TILE_SIZE", 64)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded("HEIF", corners().resize((300, 200)), exif=exif.tobytes())
    items = items_of(data)
    assert items.kinds[items.primary] == b"grid"
    assert items.extents(items.primary)[0].method == 1  # in idat
    np.testing.assert_array_equal(upright(data), read_by_library(data))


@pytest.mark.parametrize("bits", [10, 12])
def test_deep_samples_of_avif_are_scaled_to_8_bits(bits: int) -> None:
    ramp = np.linspace(0, (1 << bits) - 1, 64 * 128 * 3).reshape(64, 128, 3)
    options = [cv2.IMWRITE_AVIF_DEPTH, bits, cv2.IMWRITE_AVIF_QUALITY, 98]
    _, encoded_ramp = cv2.imencode(".avif", ramp.astype(np.uint16), options)
    expected = np.rint(ramp[..., ::-1] * 255 / ((1 << bits) - 1)).astype(np.uint8)
    assert_close(upright(encoded_ramp.tobytes()), expected)
    assert read_heif(encoded_ramp.tobytes(), LIMITS).coded_pixels >= 2 * 128 * 64


@pytest.mark.parametrize("form", FORMS)
def test_properties_that_a_reader_must_know(form: str) -> None:
    shape = prop(b"pasp", struct.pack(">II", 2, 1))._replace(is_essential=True)
    assert_close(upright(with_properties(form, FILES[form], shape)), SCENE)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["L", "RGBA", "LA"])
def test_grey_and_transparent_images_are_rgb_on_white(form: str, mode: str) -> None:
    image = Image.fromarray(SCENE).convert(mode)
    if "A" in mode:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    assert_close(upright(encoded(form, image)), np.asarray(white.convert("RGB")), 6)


def test_premultiplied_transparency_is_blended_once() -> None:
    image = Image.fromarray(SCENE).convert("RGBA")
    image.putalpha(128)
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    data = encoded("AVIF", image, alpha_premultiplied=True)
    assert b"prem" in data
    assert_close(upright(data), np.asarray(white.convert("RGB")), 6)


@pytest.mark.parametrize("twelve", [False, True], ids=["10 bits", "12 bits"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_deep_samples_are_scaled_to_8_bits(
    mode: str, twelve: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", twelve)
    image = Image.fromarray(SCENE).convert(mode)
    deep = np.asarray(image).astype(np.uint16) * 257
    file = io.BytesIO()
    pillow_heif.from_bytes(
        f"{mode};16" if mode == "RGB" else "I;16", image.size, deep.tobytes()
    ).save(file, quality=95, chroma=444)
    data = file.getvalue()
    assert_close(upright(data), np.asarray(image.convert("RGB")))
    assert read_heif(data, LIMITS).coded_pixels >= 2 * 128 * 64  # they take twice the memory


def test_of_several_images_the_primary_one_is_read() -> None:
    second = Image.new("RGB", (64, 64), "white")
    animated = encoded("AVIF", save_all=True, append_images=[second.resize((128, 64))])
    assert_close(upright(animated), SCENE)
    data = encoded("HEIF", save_all=True, append_images=[second], primary_index=1)
    assert upright(data).shape == (64, 64, 3)
    with pytest.raises(UnsupportedImage, match="sequences without a still image"):
        upright(box(b"ftyp", b"msf1", bytes(4), b"hevc") + box(b"moov") + box(b"mdat", bytes(99)))


@pytest.mark.parametrize("form", FORMS)
def test_metadata_and_other_items_are_not_decoded(form: str) -> None:
    data = with_exif(form, FILES[form], bytes(1 << 20))
    assert len(read_heif(data, LIMITS).data) < len(FILES[form]) + 1000
    assert_close(upright(data), SCENE)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_is_cut_off_is_refused(form: str) -> None:
    tiled = grid(form, [TILES[form]] * 4, 2, 2, (128, 128))
    for data in (FILES[form], tiled):
        for length in (*range(16, len(data), len(data) // 40), len(data) - 1):
            with pytest.raises(InvalidImage, match=r"truncated|no size|no data|missing|primary"):
                upright(data[:length])


@pytest.mark.parametrize("form", FORMS)
def test_too_many_pixels_are_refused_by_the_header(form: str) -> None:
    limits = ImageLimits(1 << 22, 128 * 64)
    open_upright(FILES[form], limits)
    many = grid(form, [TILES[form]] * 4, 2, 2, (65535, 65535))
    slim = grid(form, [TILES[form]] * 200, 1, 200, (64, 64))
    lying = with_properties(form, encoded(form, Image.new("RGB", (256, 128))), size(64, 32))
    for data in (with_properties(form, FILES[form], size(65535, 65535)), many, slim, lying):
        with pytest.raises(ImageTooLarge, match="pixels"):
            open_upright(data, limits)
    with pytest.raises(InvalidImage, match="no pixels"):
        open_upright(with_properties(form, FILES[form], size(0, 8)), limits)


@pytest.mark.parametrize("form", FORMS)
def test_bytes_that_items_share_count_for_each(form: str) -> None:
    data = grid(form, [TILES[form]] * 100, 10, 10, (640, 640))
    with pytest.raises(ImageTooLarge, match="bytes"):
        open_upright(data, ImageLimits(50 * len(TILES[form]), 10**6))


@pytest.mark.parametrize("form", FORMS)
def test_pieces_are_limited(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidImage, match="has 1025 tiles"):
        upright(grid(form, [TILES[form]] * 1025, 41, 25, (64, 64)))
    with pytest.raises(InvalidImage, match="tiles do not cover it"):
        upright(grid(form, [TILES[form]] * 2, 2, 1, (65, 128)))
    with pytest.raises(InvalidImage, match="boxes next to each other"):
        upright(box(b"ftyp", b"mif1") + box(b"free") * 20_000)
    item = first_item(FILES[form])
    frames = NewItem(item.kind, 1, bytes(item.data) * 9, item.properties)
    with pytest.raises(InvalidImage, match="9 pictures in one item"):
        upright(heif_file(CODECS[form], [frames], []))
    tiled = grid(form, [TILES[form]] * 4, 2, 2, (128, 128))
    for module in (heif, coded_pictures):  # of all tiles together, and of one
        monkeypatch.setattr(module, "_MAX_UNITS", 0)
        with pytest.raises(InvalidImage, match="more than 0 pieces"):
            upright(tiled)


def test_nested_boxes_cost_nothing() -> None:
    nested = b""
    for _ in range(5000):
        nested = box(b"meta", bytes(4), nested)
    with pytest.raises(InvalidImage):
        upright(box(b"ftyp", b"heic", bytes(4)) + nested)
    assert b"free" in iso_boxes.first_boxes(memoryview(box(b"free", box(b"free"))))


def test_tables_are_limited() -> None:
    start = box(b"ftyp", b"avif", bytes(4))
    primary = full_box(b"pitm", 0, 0, b"\x00\x01")
    kinds = full_box(b"iinf", 0, 0, bytes(2))
    for table in (
        full_box(b"iloc", 2, 0, b"\x44\x00", b"\xff" * 400),
        full_box(b"iloc", 0, 0, b"\x00\x00\x00\x01" + bytes(4) + b"\xff\xff", bytes(400)),
        full_box(b"iloc", 0, 0, bytes(4)) + full_box(b"iref", 0, 0, box(b"dimg", b"\xff" * 400)),
    ):
        with pytest.raises(InvalidImage, match="more than 16384"):
            upright(start + full_box(b"meta", 0, 0, primary, kinds, table))


def test_other_codecs_are_named() -> None:
    item = first_item(FILES["HEIF"])
    for kind, name in (
        (b"jpeg", "JPEG"),
        (b"vvc1", "VVC"),
        (b"iovl", "overlaid images"),
        (b"abcd", "abcd"),
    ):
        data = heif_file(b"hvc1", [NewItem(kind, 1, item.data, item.properties)], [])
        with pytest.raises(UnsupportedImage, match=f"with .*{name} inside"):
            upright(data)
    unknown = prop(b"clip", b"")._replace(is_essential=True)
    with pytest.raises(UnsupportedImage, match="property clip"):
        upright(with_properties("HEIF", FILES["HEIF"], unknown))


def test_the_codec_counts_and_not_the_brand() -> None:
    for form, brand in (("AVIF", b"heic"), ("HEIF", b"avif")):
        data = with_properties(form, FILES[form])
        for codec in (b"heic", b"avif"):
            data = data.replace(codec, brand, 1)
        assert_close(upright(data), SCENE)


@pytest.mark.parametrize(("form", "named"), [("AVIF", "libavif"), ("HEIF", r"\[heic\]")])
def test_a_decoder_that_is_not_installed_is_named(
    form: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heif, "check_decoder", heif_decoders.check_decoder)
    monkeypatch.setattr(heif_decoders, "has_decoder", lambda name: name != form)
    with pytest.raises(UnsupportedImage, match=f"not supported by this installation.*{named}"):
        upright(FILES[form])


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_any_file_is_read_or_refused(form: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(grid(form, [TILES[form]] * 2, 1, 2, (128, 64)))
    for position, value in changes:
        data[position] = value
    try:
        read_heif(bytes(data), LIMITS)
    except DetectionError as error:
        assert "truncated" in error.detail or len(error.detail) > 10
