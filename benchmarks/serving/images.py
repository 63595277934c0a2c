"""The JPEG files that every server receives, and the detections that each must return.

Crops of 640 x 480 from the sample photos of the service's page. Each differs from the others, and
so do its expected detections: a response to the wrong request counts as wrong.
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
from model.images.decode import DecodedImage, ImageLimits, JpegDecoding, decode_image
from tests.support.fake_device import FAKE_MODEL, fake_detections

SIZE = (640, 480)  # width, height
SAMPLES = Path(service.__file__).parent / "rest" / "static" / "samples"
NO_LIMITS = ImageLimits(max_bytes=10**9, max_pixels=10**9)
_QUALITY = 90
_CROPS = 4  # of each sample

# What a client reads from a response: score, class id and corners of each detection.
Found = tuple[tuple[float, int, tuple[float, ...]], ...]


@dataclass(frozen=True)
class EncodedImage:
    """A JPEG file, and what the fake device finds in it."""

    data: bytes
    found: Found


def make_images() -> tuple[EncodedImage, ...]:
    """Sixteen images, always the same."""
    images = []
    for path in sorted(SAMPLES.glob("*.jpg")):
        with Image.open(path) as opened:
            sample = opened.convert("RGB")
        for number in range(_CROPS):
            images.append(_with_detections(_encode(_crop(sample, number))))
    return tuple(images)


def flat_png() -> bytes:
    """An image that takes almost no time to decode and resize."""
    buffer = io.BytesIO()
    Image.new("RGB", (96, 4), (90, 120, 150)).save(buffer, "PNG")
    return buffer.getvalue()


def decode(data: bytes, jpeg_decoding: JpegDecoding = "exact") -> DecodedImage:
    """Decodes and resizes as the service does, for the fake device's model."""
    return decode_image(data, FAKE_MODEL.config, NO_LIMITS, jpeg_decoding=jpeg_decoding)


def decode_with_pillow(data: bytes) -> Image.Image:
    """Decodes and resizes with Pillow alone: the unit of CPU time of the comparisons."""
    config = FAKE_MODEL.config
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    size = resized_size(image.height, image.width, config.shortest_side, config.longest_side)
    return image.resize(size[::-1], Image.Resampling.BILINEAR)


def as_json(detections: Detections) -> list[dict[str, Any]]:
    """Detections in this service's JSON format, for servers that have no format of their own."""
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
    """The detections of a response's JSON, in the form of `EncodedImage.found`."""
    return tuple(
        (
            round(float(each["score"]), 4),
            int(each["class_id"]),
            tuple(round(float(each["box"][side]), 2) for side in ("xmin", "ymin", "xmax", "ymax")),
        )
        for each in detections
    )


def _with_detections(data: bytes) -> EncodedImage:
    decoded = decode(data)
    found = fake_detections(decoded.pixels, decoded.original_size)
    return EncodedImage(data, read_found(as_json(found)))


def _crop(sample: Image.Image, number: int) -> Image.Image:
    """One corner of a sample, three quarters of its width and height, resized to `SIZE`."""
    width, height = sample.width * 3 // 4, sample.height * 3 // 4
    left = (number % 2) * (sample.width - width)
    top = (number // 2) * (sample.height - height)
    return sample.crop((left, top, left + width, top + height)).resize(SIZE)


def _encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
