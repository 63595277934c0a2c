"""The photos that every contender gets, and the answers that each of them must give.

JPEG files of 640 x 480 cut from the sample photos that the service ships; each differs from the
others, and so does its expected answer, so that an answer given to the wrong caller is seen.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import service
from model.detections import Detections
from model.geometry import resized_size
from model.images.decode import DecodedImage, ImageLimits, decode_image
from tests.support.fake_device import FAKE_MODEL, fake_detections

SIZE = (640, 480)  # width, height
_QUALITY = 90
_SAMPLES = Path(service.__file__).parent / "rest" / "static" / "samples"
_CUTS = 4  # of each sample
NO_LIMITS = ImageLimits(max_bytes=10**9, max_pixels=10**9)

# What a client reads from an answer: score, class id and corners of each detection.
Found = tuple[tuple[float, int, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Photo:
    """One encoded image, and what the fake device finds in it."""

    data: bytes
    found: Found


def make_photos() -> tuple[Photo, ...]:
    """Sixteen photos, always the same."""
    photos = []
    for path in sorted(_SAMPLES.glob("*.jpg")):
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        for cut in range(_CUTS):
            photos.append(_photo(_encode(_cut(picture, cut))))
    return tuple(photos)


def decode(data: bytes) -> DecodedImage:
    """The service's own decoding and resizing, for the fake device's model."""
    return decode_image(data, FAKE_MODEL.config, NO_LIMITS)


def decode_with_pillow(data: bytes) -> Image.Image:
    """The same with nothing but Pillow: what CPU times are told in multiples of."""
    config = FAKE_MODEL.config
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    size = resized_size(picture.height, picture.width, config.shortest_side, config.longest_side)
    return picture.resize(size[::-1], Image.Resampling.BILINEAR)


def as_json(detections: Detections) -> list[dict[str, Any]]:
    """Detections the way this service writes them, for contenders that have no way of their own."""
    scores = np.round(detections.scores.astype(np.float64), 4).tolist()
    boxes = np.round(detections.boxes_xyxy.astype(np.float64), 2).tolist()
    return [
        {
            "label": FAKE_MODEL.labels[class_id],
            "class_id": class_id,
            "score": score,
            "box": {"xmin": box[0], "ymin": box[1], "xmax": box[2], "ymax": box[3]},
        }
        for score, class_id, box in zip(scores, detections.labels.tolist(), boxes, strict=True)
    ]


def read_found(detections: Sequence[dict[str, Any]]) -> Found:
    """The detections of an answer's JSON, as `Photo.found` holds them."""
    return tuple(
        (
            round(float(each["score"]), 4),
            int(each["class_id"]),
            tuple(round(float(each["box"][side]), 2) for side in ("xmin", "ymin", "xmax", "ymax")),
        )
        for each in detections
    )


def _photo(data: bytes) -> Photo:
    decoded = decode(data)
    return Photo(data, read_found(as_json(fake_detections(decoded.pixels, decoded.original_size))))


def _cut(picture: Image.Image, number: int) -> Image.Image:
    """A part of three quarters of a picture: one of its four corners."""
    width, height = picture.width * 3 // 4, picture.height * 3 // 4
    left = (number % 2) * (picture.width - width)
    top = (number // 2) * (picture.height - height)
    return picture.crop((left, top, left + width, top + height)).resize(SIZE)


def _encode(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
