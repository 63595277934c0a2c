"""Boxes and labels drawn on the original photo."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from model.detections import Detections
from model.images.decode import ImageLimits
from service.images.drawing import CLASS_COLOURS, class_colour, draw_detections, render_detections

LIMITS = ImageLimits(max_bytes=1 << 24, max_pixels=50_000_000)
NAMES = ("qr_code", "data_matrix", "aztec", "pdf417", "linear")


def found(*boxes: tuple[float, float, float, float], class_id: int = 0) -> Detections:
    return Detections(
        scores=np.linspace(0.9, 0.5, len(boxes), dtype=np.float32),
        labels=np.full(len(boxes), class_id, dtype=np.int64),
        boxes_xyxy=np.array(boxes, dtype=np.float32).reshape(-1, 4),
    )


def colour(class_id: int) -> list[int]:
    return list(Image.new("RGB", (1, 1), CLASS_COLOURS[class_id]).getpixel((0, 0)))  # type: ignore[arg-type]


def encode(picture: Image.Image, form: str, **options: object) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, form, **options)
    return encoded.getvalue()


def test_a_box_is_outlined_where_it_is() -> None:
    picture = Image.new("RGB", (320, 240), "black")
    draw_detections(picture, found((100, 80, 200, 160), class_id=1), NAMES)
    pixels = np.asarray(picture)
    for row, column in ((120, 100), (120, 199), (80, 150), (159, 150)):
        assert pixels[row, column].tolist() == colour(1)
    assert pixels[130, 150].tolist() == [0, 0, 0]


def test_a_label_is_written_above_its_box() -> None:
    picture = Image.new("RGB", (640, 480), "black")
    draw_detections(picture, found((100, 200, 300, 400)), NAMES)
    above = np.asarray(picture)[175:197, 100:180].reshape(-1, 3)
    ground = (above == colour(0)).all(axis=-1).mean()
    assert 0.4 < ground < 0.95  # a filled plate with dark letters in it
    assert (above.sum(axis=-1) < 200).mean() > 0.03


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (40, 30), (200, 8), (8, 200), (4000, 3000)])
def test_any_size_of_picture_can_be_drawn_on(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, "gray")
    width, height = size
    boxes = [(0.0, 0.0, width, height), (-5.0, -5.0, width + 5.0, height + 5.0)]
    draw_detections(picture, found(*boxes), NAMES)
    assert picture.size == size
    outlined = (np.asarray(picture) == colour(0)).all(axis=-1).any()
    assert outlined or min(size) < 8


def test_labels_grow_with_the_picture() -> None:
    def plate_height(size: int) -> int:
        picture = Image.new("RGB", (size, size), "black")
        draw_detections(picture, found((size * 0.3, size * 0.6, size * 0.9, size * 0.9)), NAMES)
        column = np.asarray(picture)[: int(size * 0.59), int(size * 0.302)]
        return int((column == colour(0)).all(axis=-1).sum())

    assert plate_height(4000) > 5 * plate_height(500) > 0


def test_labels_of_boxes_on_one_spot_stand_apart() -> None:
    alone, together = (Image.new("RGB", (640, 480), "black") for _ in range(2))
    box = (200.0, 200.0, 400.0, 300.0)
    draw_detections(alone, found(box), NAMES)
    draw_detections(together, found(box, box), NAMES)

    def plates(picture: Image.Image) -> int:
        return int((np.asarray(picture) == colour(0)).all(axis=-1).sum())

    assert plates(together) > plates(alone) + 500


def test_boxes_outside_turned_round_or_flat_are_clamped() -> None:
    picture = Image.new("RGB", (100, 100), "black")
    boxes = found((500, 500, 600, 600), (-50, -50, -10, -10), (60, 60, 20, 20), (5, 5, 5, 5))
    draw_detections(picture, boxes, NAMES)


def test_a_class_without_a_name_is_called_by_its_number() -> None:
    draw_detections(Image.new("RGB", (100, 100)), found((10, 10, 50, 50), class_id=77), NAMES)
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
def test_an_answer_keeps_the_family_and_the_size(form: str, media_type: str) -> None:
    data = encode(Image.new("RGB", (321, 123), "teal"), form)
    drawn = render_detections(data, found((10, 10, 50, 50)), NAMES, LIMITS)
    assert drawn.media_type == media_type
    picture = Image.open(io.BytesIO(drawn.data))
    picture.load()
    assert picture.size == (321, 123)
    assert f"image/{str(picture.format).lower()}" == media_type


def test_an_answer_is_drawn_on_the_upright_photo() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.new("RGB", (80, 60), "teal"), "JPEG", exif=exif)
    drawn = render_detections(data, found((10, 10, 50, 70)), NAMES, LIMITS)
    picture = Image.open(io.BytesIO(drawn.data))
    assert picture.size == (60, 80)
    assert 0x0112 not in picture.getexif()


def test_grey_photos_get_coloured_boxes() -> None:
    drawn = render_detections(
        encode(Image.new("L", (200, 200), 30), "PNG"), found((50, 50, 150, 150)), NAMES, LIMITS
    )
    assert Image.open(io.BytesIO(drawn.data)).mode == "RGB"
