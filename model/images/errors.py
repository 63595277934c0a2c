"""Errors of images that cannot be used.

`DetectionError` is the base class of every error of a request; the others are in `service.errors`.
"""

from __future__ import annotations

from typing import ClassVar


class DetectionError(Exception):
    """Base class of the errors that a client can receive.

    Attributes:
        code: stable, machine-readable name of the error.
        detail: one sentence for the client.
        retry_after_seconds: when a retry may succeed; None if it cannot.
    """

    code: ClassVar[str] = "detection_error"

    def __init__(self, detail: str, *, retry_after_seconds: int | None = None) -> None:
        """Stores the attributes."""
        super().__init__(detail)
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds


class InvalidImage(DetectionError):
    """The bytes are not an image, or the image is broken."""

    code = "invalid_image"


class UnsupportedImage(DetectionError):
    """The bytes are a file of another kind."""

    code = "unsupported_image"


class ImageTooLarge(DetectionError):
    """Too many bytes or pixels."""

    code = "image_too_large"
