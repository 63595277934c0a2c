"""Images and options as people pass them: accepted, or refused by a sentence."""

from __future__ import annotations

import io
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lite_detr_client import Caller, DetectOptions
from lite_detr_client.inputs import (
    MODEL_DEFAULTS,
    checked_request_id,
    merge_options,
    read_image,
    several,
)
from model.images.decode import open_upright
from tests.support.decoder_images import LIMITS
from tests.support.images import solid_png

FILE = solid_png((1, 2, 3), 20, 10)


@pytest.mark.parametrize(
    "as_source",
    [
        bytes,
        bytearray,
        memoryview,
        io.BytesIO,
        lambda data: np.frombuffer(data, dtype=np.uint8),
    ],
    ids=["bytes", "bytearray", "memoryview", "file object", "array of encoded bytes"],
)
def test_encoded_images_are_sent_as_they_are(as_source: Callable[[bytes], Any]) -> None:
    assert read_image(as_source(FILE)) == FILE


def test_files_are_read_by_path_or_while_open(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(FILE)
    assert read_image(path) == read_image(str(path)) == FILE
    with path.open("rb") as stream:
        assert read_image(stream) == FILE


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_images_of_pillow_keep_their_pixels(mode: str) -> None:
    image = Image.open(io.BytesIO(FILE)).convert("RGB")
    image = Image.new("I;16", (20, 10), 777) if mode == "I;16" else image.convert(mode)
    with Image.open(io.BytesIO(read_image(image))) as sent:
        assert sent.size == (20, 10)
        expected = image if sent.mode == image.mode else image.convert(sent.mode)
        assert np.array_equal(np.asarray(sent), np.asarray(expected))


DEEP = np.array([[0, 300, 20_000], [40_000, 65_000, 65_535]], np.uint16)
DEEP_GREY = np.rint(DEEP / 257)  # 65535 -> 255
ORDERS = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I;16N": "=u2"}


def pillow_image(mode: str) -> tuple[Image.Image, np.ndarray]:
    """Returns an image of a mode and its pixels as 8-bit RGB."""
    if mode in ORDERS:
        image = Image.frombytes(mode, (3, 2), DEEP.astype(ORDERS[mode]).tobytes())
        return image, np.repeat(DEEP_GREY[..., None], 3, axis=-1)
    if mode == "I":
        return Image.fromarray(DEEP.astype(np.int32)), np.repeat(DEEP_GREY[..., None], 3, axis=-1)
    if mode == "F":
        samples = np.array([[0, 0.25, 0.5], [0.75, 0.8, 1]], np.float32)
        return Image.fromarray(samples), np.repeat(np.rint(samples * 255)[..., None], 3, axis=-1)
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3) * 4)
    if mode == "LAB":
        return Image.new("LAB", (5, 4), (120, 20, 30)), np.array([])
    # Opaque, so that nothing shows through.
    image = image.convert("LA").convert("La") if mode == "La" else image.convert(mode)
    return image, np.asarray((image.convert("LA") if mode == "La" else image).convert("RGB"))


@pytest.mark.parametrize("mode", Image.MODES)
def test_the_service_gets_the_pixels_of_every_mode_of_pillow(mode: str) -> None:
    image, expected = pillow_image(mode)
    if mode == "LAB":
        expected = np.asarray(image.convert("RGB"))
    before = image.tobytes()
    seen, form = open_upright(read_image(image), LIMITS)
    assert form == ("TIFF" if mode == "F" else "PNG")
    assert np.array_equal(np.asarray(seen), expected)
    assert image.tobytes() == before


@pytest.mark.parametrize(
    "samples",
    [
        np.array([[-20, 0], [500, 70_000]], np.int32),
        np.array([[0, 65_536]], np.int32),
        np.array([[-1, 65_535]], np.int32),
        np.array([[0, 40_000.5], [65_535, 255]], np.float32),
        np.array([[-0.5, 0.25], [0.5, 1.5]], np.float32),
        np.array([[0, np.nan], [0.5, np.inf]], np.float32),
    ],
    ids=["wide", "above", "below", "float-16-bits", "float-range", "not-finite"],
)
def test_samples_that_png_has_not_are_sent_as_in_their_tiff(samples: np.ndarray) -> None:
    image = Image.fromarray(samples)
    file = io.BytesIO()
    image.save(file, "TIFF")
    of_file = np.asarray(open_upright(file.getvalue(), LIMITS)[0])
    of_image = np.asarray(open_upright(read_image(image), LIMITS)[0])
    assert np.array_equal(of_image, of_file)
    assert len(np.unique(of_image)) > 1


def test_a_big_endian_tiff_opened_by_pillow_is_not_clipped() -> None:
    image, expected = pillow_image("I;16B")
    file = io.BytesIO()
    image.save(file, "TIFF")
    with Image.open(io.BytesIO(file.getvalue())) as opened:
        assert opened.mode == "I;16B"
        seen, _ = open_upright(read_image(opened), LIMITS)
    assert np.array_equal(np.asarray(seen), expected)


def test_an_image_sent_as_tiff_is_not_rotated() -> None:
    file = io.BytesIO()
    Image.new("F", (20, 10)).save(file, "TIFF", tiffinfo={0x0112: 6})
    with Image.open(file) as image:
        image.load()  # Pillow itself applies the orientation of a TIFF
        size = image.size
        with Image.open(io.BytesIO(read_image(image))) as sent:
            assert (sent.size, 0x0112 in sent.getexif()) == (size, False)


@pytest.mark.parametrize(
    ("mode", "colour"),
    [
        ("1", b"\0"),
        ("L", b"\0\1"),
        ("L", (1, 2, 3)),
        ("L", 256),
        ("L", -1),
        ("P", (1, 2, 3)),
        ("P", 256),
        ("P", "0"),
        ("RGB", 3),
        ("RGB", b"\0"),
        ("RGB", (1, 2)),
        ("RGB", (1, 2, 300)),
        ("RGB", (1, 2, "3")),
        ("I;16", b"\0"),
        ("I;16", 65_536),
        ("I", b"\0"),
        ("F", 0),
        ("LA", 0),
        ("RGBA", b"\0"),
        ("CMYK", 0),
        ("CMYK", b"\0"),
        ("PA", b"\0"),
        ("RGBa", 0),
        ("I;16B", b"\0"),
        ("YCbCr", (1, 2, 3)),
    ],
)
def test_a_transparent_colour_of_another_mode_is_ignored(mode: str, colour: object) -> None:
    image = Image.new(mode, (4, 3))
    plain = read_image(image)
    image.info["transparency"] = colour
    assert read_image(image) == plain
    assert image.info == {"transparency": colour}


@pytest.mark.parametrize(
    ("mode", "colour"),
    [("1", 0), ("L", 0), ("P", 0), ("P", b"\0"), ("RGB", (0, 0, 0)), ("I;16", 0), ("I", 0)],
)
def test_a_transparent_colour_is_sent(mode: str, colour: object) -> None:
    image = Image.new(mode, (4, 3))
    image.info["transparency"] = colour
    seen, _ = open_upright(read_image(image), LIMITS)
    assert np.asarray(seen).min() == 255  # on white


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_translucent_images_of_pillow_keep_their_alpha(mode: str) -> None:
    image = Image.new("RGBA", (4, 3), (0, 0, 0, 100))
    if mode in {"La", "LA"}:
        image = image.convert("LA")
    if mode == "PA":
        image = Image.new("P", (4, 3)).convert("PA")
        image.putalpha(100)
    with Image.open(io.BytesIO(read_image(image.convert(mode)))) as sent:
        assert sent.getchannel("A").getextrema() == (100, 100)


def test_an_image_of_pillow_is_not_rotated() -> None:
    """Its pixels are what the caller sees, so boxes refer to them."""
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated
    Image.new("RGB", (20, 10)).save(stream, "JPEG", exif=exif)
    image = Image.open(stream)
    image.info["exif"] = exif.tobytes()
    with Image.open(io.BytesIO(read_image(image))) as sent:
        assert (sent.size, dict(sent.getexif())) == ((20, 10), {})


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3), np.uint8), "fromarray"),
        (np.zeros(4, np.float32), "fromarray"),
        ([FILE], "detect_batch"),
        ((FILE, FILE), "detect_batch"),
        (None, "NoneType"),
        (5, "int"),
        ({"image": FILE}, "dict"),
        (io.StringIO("text"), "binary mode"),
        (Image, "module"),
    ],
)
def test_other_types_are_refused_by_a_sentence(image: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        read_image(image)


@pytest.mark.parametrize("address", ["http://a.test/b.jpg", "https://a", "data:image/png;base64,"])
def test_addresses_are_refused_by_a_sentence(address: str) -> None:
    with pytest.raises(ValueError, match="download nothing"):
        read_image(address)


@pytest.mark.parametrize(
    "images",
    [
        "image.jpg",
        FILE,
        bytearray(FILE),
        Path("image.jpg"),
        io.BytesIO(FILE),
        Image.new("RGB", (2, 2)),
        {"a": FILE},
        np.zeros((4, 4, 3), np.uint8),
        None,
        5,
    ],
    ids=lambda images: type(images).__name__,
)
def test_a_single_image_is_not_a_list(images: Any) -> None:
    with pytest.raises(TypeError, match=r"detect_batch takes a list of images, not an? "):
        several(images, "detect_batch")


def test_labels_may_be_any_collection_except_a_single_name() -> None:
    assert DetectOptions(labels=["a", "b"]).labels == ("a", "b")  # type: ignore[arg-type]
    assert merge_options(MODEL_DEFAULTS, None, None, {"a"}).labels == ("a",)
    with pytest.raises(TypeError, match=r"labels takes a list of names, such as \['person'\]"):
        DetectOptions(labels="person")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="labels takes a list"):
        merge_options(MODEL_DEFAULTS, None, None, "person")


def test_options_by_keyword_take_precedence() -> None:
    given = DetectOptions(threshold=0.1, max_detections=5)
    assert merge_options(given, 0.5, None, None) == DetectOptions(0.5, 5)
    assert merge_options(given, None, None, None) is given
    tiled = DetectOptions(tile="640x480", overlap=0.3)
    assert merge_options(tiled, 0.5, None, None) == DetectOptions(0.5, None, None, "640x480", 0.3)


@pytest.mark.parametrize("options", [0.5, {"threshold": 0.5}, None])
def test_other_options_are_refused_by_a_sentence(options: Any) -> None:
    with pytest.raises(TypeError, match=r"threshold=0\.5"):
        merge_options(options, None, None, None)


@pytest.mark.parametrize("value", ["0.5", True, b"1"])
def test_text_is_not_a_number(value: Any) -> None:
    with pytest.raises(TypeError, match="threshold takes a number"):
        DetectOptions(threshold=value)


def test_a_tile_is_text() -> None:
    with pytest.raises(TypeError, match="tile takes 'auto'"):
        DetectOptions(tile=(640, 480))  # type: ignore[arg-type]


def test_paths_of_pipes_and_devices_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            read_image(path)


def test_a_file_too_large_to_send_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(20 << 30)
    with pytest.raises(OSError, match="more than"):
        read_image(path)


SECRET = "ldk_SECRET"


@pytest.mark.parametrize("key", [SECRET, f"{SECRET}\n", f" {SECRET}\r\n", f"\t{SECRET}"])
def test_white_space_around_an_api_key_is_removed(key: str) -> None:
    assert Caller(api_key=key).headers() == {"Authorization": f"Bearer {SECRET}"}
    assert replace(Caller(priority="high"), api_key=key) == Caller(SECRET, "high")


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (f"{SECRET}\nsecond", ValueError),
        (f"{SECRET} second", ValueError),
        (f"{SECRET}\0", ValueError),
        (f"{SECRET}\x7f", ValueError),
        (f"{SECRET}é", ValueError),
        (f"\ufeff{SECRET}", ValueError),
        (f"{SECRET}\udc80", ValueError),
        ("", ValueError),
        (" \n", ValueError),
        (SECRET.encode(), TypeError),
        ([SECRET], TypeError),
    ],
)
def test_an_unusable_api_key_is_refused_without_showing_it(
    key: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="api_key") as caught:
        Caller(api_key=key)
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_caller_does_not_show_its_key() -> None:
    assert SECRET not in f"{Caller(SECRET)} {Caller(SECRET)!r}"


def test_a_priority_is_one_that_the_service_has() -> None:
    loud: Any = " HIGH\n"
    assert Caller(priority=loud).headers() == {"X-Request-Priority": "high"}
    for wrong in ("urgent", "", f"high\nX-Key: {SECRET}", SECRET):
        with pytest.raises(ValueError, match="takes 'high' or 'normal'") as caught:
            Caller(priority=wrong)  # type: ignore[arg-type]
        assert SECRET not in "".join(traceback.format_exception_only(caught.value))
    with pytest.raises(TypeError, match="takes 'high' or 'normal'"):
        Caller(priority=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("request_id", [None, "", "mine", "a b", '~!"{}', "x" * 500])
def test_a_request_id_may_be_any_text_that_headers_can_have(request_id: str | None) -> None:
    assert checked_request_id(request_id) == request_id


@pytest.mark.parametrize(
    "request_id", ["a\nb", "a\n", " a", "a\t", "é", "\0", "a\x7f", "\udc80", " "]
)
def test_another_request_id_is_refused(request_id: str) -> None:
    with pytest.raises(ValueError, match="request_id takes printable ASCII"):
        checked_request_id(request_id)


def test_a_request_id_is_text() -> None:
    for wrong in (5, b"a", ["a"]):
        with pytest.raises(TypeError, match=r"request_id takes text, not an? "):
            checked_request_id(wrong)  # type: ignore[arg-type]
