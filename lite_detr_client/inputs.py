"""What a caller hands in: images and options."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ImageSource = bytes | bytearray | memoryview | str | os.PathLike[str]


@dataclass(frozen=True)
class DetectOptions:
    """What is asked of the detections; None stands for the model's own default."""

    threshold: float | None = None  # 0..1; the lowest score that is kept
    max_detections: int | None = None  # the best ones are kept
    labels: tuple[str, ...] | None = None  # class names; detections of others are dropped


MODEL_DEFAULTS = DetectOptions()


@dataclass(frozen=True)
class Caller:
    """Who calls, and how urgently: goes with every call of a client."""

    api_key: str | None = None  # where the service asks for one; keep it to TLS
    priority: Literal["high", "normal"] | None = None  # None: the service's own default

    def headers(self) -> dict[str, str]:
        """As HTTP sends it; gRPC sends the same in small letters."""
        headers = {}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        if self.priority is not None:
            headers["X-Request-Priority"] = self.priority
        return headers


ANYBODY = Caller()


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
