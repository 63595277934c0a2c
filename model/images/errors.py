"""Errors of an image that cannot be used, shared by serving, training and evaluation.

`DetectionError` is the base of every error that a request can end with; the others that serving
knows are in `service.errors`.
"""

from __future__ import annotations

from typing import ClassVar


class DetectionError(Exception):
    """An input or a request that fails with an error of its own.

    Attributes:
        code: stable, machine-readable name of the error.
        detail: one sentence for the person who sent the request.
        retry_after_seconds: when a retry is worthwhile; None if it never is.
    """

    code: ClassVar[str] = "detection_error"

    def __init__(self, detail: str, *, retry_after_seconds: int | None = None) -> None:
        """Keeps the sentence that the client will read."""
        super().__init__(detail)
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds


class InvalidImage(DetectionError):
    """The bytes are not an image, or the image is broken."""

    code = "invalid_image"


class UnsupportedImage(DetectionError):
    """The bytes are a file of a kind that is not accepted."""

    code = "unsupported_image"


class ImageTooLarge(DetectionError):
    """Too many bytes or pixels."""

    code = "image_too_large"
