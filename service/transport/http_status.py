"""Errors -> HTTP statuses, in one table for all adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.errors import (
    DeadlineExceeded,
    DetectionError,
    ImageTooLarge,
    InferenceFailed,
    InvalidImage,
    InvalidOptions,
    NotReady,
    Overloaded,
    ShuttingDown,
    UnsupportedImage,
)


@dataclass(frozen=True)
class ErrorKind:
    """The HTTP status and title of one kind of error."""

    status: int
    title: str
    retry_after_s: int | None = None  # Retry-After, unless the error has its own


ERROR_KINDS: Mapping[type[DetectionError], ErrorKind] = {
    InvalidImage: ErrorKind(400, "The image cannot be read"),
    UnsupportedImage: ErrorKind(415, "This kind of file is not supported"),
    ImageTooLarge: ErrorKind(413, "The image is too large"),
    InvalidOptions: ErrorKind(422, "An option is not valid"),
    Overloaded: ErrorKind(429, "The service is busy", retry_after_s=1),
    NotReady: ErrorKind(503, "The service is not ready", retry_after_s=5),
    ShuttingDown: ErrorKind(503, "The service is shutting down", retry_after_s=5),
    DeadlineExceeded: ErrorKind(504, "The deadline has passed"),
    InferenceFailed: ErrorKind(500, "The model failed on this image"),
}
_UNKNOWN_KIND = ErrorKind(500, "Internal error")


def error_kind(error: DetectionError) -> ErrorKind:
    """The entry for an error's class, or for its nearest base class."""
    for error_class in type(error).__mro__:
        if error_class in ERROR_KINDS:
            return ERROR_KINDS[error_class]
    return _UNKNOWN_KIND


def retry_after_s(error: DetectionError) -> int | None:
    """Seconds after which a retry is useful; None if it never is."""
    if error.retry_after_seconds is not None:
        return error.retry_after_seconds
    return error_kind(error).retry_after_s
