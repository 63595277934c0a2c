"""Images and options as people pass them: accepted, or refused by a sentence."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lite_detr_client import DetectOptions
from lite_detr_client.inputs import MODEL_DEFAULTS, merge_options, read_image, several
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
