"""What a caller hands in: images and options."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ImageSource = bytes | bytearray | memoryview | str | os.PathLike[str]


@dataclass(frozen=True)
class DetectOptions:
    """What is asked of the detections; None stands for the model's own default."""

    threshold: float | None = None  # 0..1; the lowest score that is kept
    max_detections: int | None = None  # the best ones are kept
    labels: tuple[str, ...] | None = None  # class names; detections of others are dropped


MODEL_DEFAULTS = DetectOptions()


def read_image(image: ImageSource) -> bytes:
    """The bytes of an image file.

    Args:
        image: those bytes, or the path of the file.

    Raises:
        OSError: for a file that cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    return bytes(image)
