"""Boxes and labels drawn on the original image."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from model.detections import Detections
from model.images.decode import ImageLimits
from service.images import fonts
from service.images.drawing import CLASS_COLOURS, class_colour, draw_detections, render_detections

LIMITS = ImageLimits(max_bytes=1 << 24, max_pixels=50_000_000)
NAMES = ("qr_code", "data_matrix", "aztec", "pdf417", "linear")


def detections_of(*boxes: tuple[float, float, float, float], class_id: int = 0) -> Detections:
    return Detections(
        scores=np.linspace(0.9, 0.5, len(boxes), dtype=np.float32),
        labels=np.full(len(boxes), class_id, dtype=np.int64),
        boxes_xyxy=np.array(boxes, dtype=np.float32).reshape(-1, 4),
    )


def colour(class_id: int) -> list[int]:
    return list(Image.new("RGB", (1, 1), CLASS_COLOURS[class_id]).getpixel((0, 0)))  # type: ignore[arg-type]


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, form, **options)
    return encoded.getvalue()


def test_a_box_is_drawn_at_its_coordinates() -> None:
    image = Image.new("RGB", (320, 240), "black")
    draw_detections(image, detections_of((100, 80, 200, 160), class_id=1), NAMES)
    pixels = np.asarray(image)
    for row, column in ((120, 100), (120, 199), (80, 150), (159, 150)):
        assert pixels[row, column].tolist() == colour(1)
    assert pixels[130, 150].tolist() == [0, 0, 0]


def test_a_label_is_written_above_its_box() -> None:
    image = Image.new("RGB", (640, 480), "black")
    draw_detections(image, detections_of((100, 200, 300, 400)), NAMES)
    above = np.asarray(image)[175:197, 100:180].reshape(-1, 3)
    filled = (above == colour(0)).all(axis=-1).mean()
    assert 0.4 < filled < 0.95  # a filled rectangle with dark letters
    assert (above.sum(axis=-1) < 200).mean() > 0.03


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (40, 30), (200, 8), (8, 200), (4000, 3000)])
def test_an_image_of_any_size_can_be_drawn_on(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "gray")
    width, height = size
    boxes = [(0.0, 0.0, width, height), (-5.0, -5.0, width + 5.0, height + 5.0)]
    draw_detections(image, detections_of(*boxes), NAMES)
    assert image.size == size
    outlined = (np.asarray(image) == colour(0)).all(axis=-1).any()
    assert outlined or min(size) < 8


def test_labels_grow_with_the_image() -> None:
    def label_height(size: int) -> int:
        image = Image.new("RGB", (size, size), "black")
        draw_detections(
            image, detections_of((size * 0.3, size * 0.6, size * 0.9, size * 0.9)), NAMES
        )
        column = np.asarray(image)[: int(size * 0.59), int(size * 0.302)]
        return int((column == colour(0)).all(axis=-1).sum())

    assert label_height(4000) > 5 * label_height(500) > 0


def test_labels_of_boxes_at_one_place_do_not_overlap() -> None:
    single, both = (Image.new("RGB", (640, 480), "black") for _ in range(2))
    box = (200.0, 200.0, 400.0, 300.0)
    draw_detections(single, detections_of(box), NAMES)
    draw_detections(both, detections_of(box, box), NAMES)

    def label_pixels(image: Image.Image) -> int:
        return int((np.asarray(image) == colour(0)).all(axis=-1).sum())

    assert label_pixels(both) > label_pixels(single) + 500


def test_boxes_that_are_outside_inverted_or_empty_are_clamped() -> None:
    image = Image.new("RGB", (100, 100), "black")
    boxes = detections_of(
        (500, 500, 600, 600), (-50, -50, -10, -10), (60, 60, 20, 20), (5, 5, 5, 5)
    )
    draw_detections(image, boxes, NAMES)


def test_a_class_without_a_name_is_labelled_with_its_number() -> None:
    draw_detections(
        Image.new("RGB", (100, 100)), detections_of((10, 10, 50, 50), class_id=77), NAMES
    )
    assert class_colour(77) in CLASS_COLOURS


@pytest.mark.parametrize(
    ("form", "media_type"),
    [
        ("JPEG", "image/jpeg"),
        ("WEBP", "image/jpeg"),
        ("PNG", "image/png"),
        ("BMP", "image/png"),
        ("TIFF", "image/png"),
        ("GIF", "image/png"),
    ],
)
def test_the_format_follows_the_source_and_the_size_is_kept(form: str, media_type: str) -> None:
    data = encode(Image.new("RGB", (321, 123), "teal"), form)
    drawn = render_detections(data, detections_of((10, 10, 50, 50)), NAMES, LIMITS)
    assert drawn.media_type == media_type
    image = Image.open(io.BytesIO(drawn.data))
    image.load()
    assert image.size == (321, 123)
    assert f"image/{str(image.format).lower()}" == media_type


def test_the_image_is_drawn_after_exif_rotation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.new("RGB", (80, 60), "teal"), "JPEG", exif=exif)
    drawn = render_detections(data, detections_of((10, 10, 50, 70)), NAMES, LIMITS)
    image = Image.open(io.BytesIO(drawn.data))
    assert image.size == (60, 80)
    assert 0x0112 not in image.getexif()


def test_greyscale_images_get_coloured_boxes() -> None:
    drawn = render_detections(
        encode(Image.new("L", (200, 200), 30), "PNG"),
        detections_of((50, 50, 150, 150)),
        NAMES,
        LIMITS,
    )
    assert Image.open(io.BytesIO(drawn.data)).mode == "RGB"


def _drawn_label(name: str) -> npt.NDArray[np.uint8]:
    image = Image.new("RGB", (640, 200), "black")
    draw_detections(image, detections_of((10, 100, 630, 190)), (name,))
    return np.asarray(image)


def test_a_name_that_no_font_has_is_the_number_of_its_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ())
    fonts.drawable.cache_clear()
    fonts.font_path.cache_clear()
    expected = _drawn_label("class 0")
    for name in ("猫", "кошка", "แมว", "👍", "\ufffd", "cat 猫"):
        np.testing.assert_array_equal(_drawn_label(name), expected)


def test_a_name_in_several_lines_is_drawn_on_one() -> None:
    np.testing.assert_array_equal(
        _drawn_label("traffic\n\tlight\x07"), _drawn_label("traffic light")
    )
