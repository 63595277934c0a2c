"""Inputs of a call: images, options, and who is calling."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ImageSource = bytes | bytearray | memoryview | str | os.PathLike[str]


@dataclass(frozen=True)
class DetectOptions:
    """Which detections to return. None: the default of the model."""

    threshold: float | None = None  # 0..1; lowest score to return
    max_detections: int | None = None  # the ones with the best scores
    labels: tuple[str, ...] | None = None  # only detections of these classes


MODEL_DEFAULTS = DetectOptions()


@dataclass(frozen=True)
class Caller:
    """API key and priority, sent with every call of a client."""

    api_key: str | None = None  # if the service requires one; send it over TLS only
    priority: Literal["high", "normal"] | None = None  # None: the default of the service

    def headers(self) -> dict[str, str]:
        """Returns the HTTP headers; gRPC sends the same with lower-case names."""
        headers = {}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        if self.priority is not None:
            headers["X-Request-Priority"] = self.priority
        return headers


ANONYMOUS = Caller()


def read_image(image: ImageSource) -> bytes:
    """Returns the bytes of an image file.

    Args:
        image: the bytes, or the path of the file.

    Raises:
        OSError: if the file cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    return bytes(image)
