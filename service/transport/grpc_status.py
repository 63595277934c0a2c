"""Errors -> gRPC status codes and trailing metadata, in one table for all services."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import grpc

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

CODE_KEY = "lite-detr-code"
RETRY_DELAY_KEY = "retry-delay-ms"


@dataclass(frozen=True)
class ErrorStatus:
    """The status of one kind of error."""

    status: grpc.StatusCode
    retry_delay_ms: int | None = None  # unless the error has its own


ERROR_STATUSES: Mapping[type[DetectionError], ErrorStatus] = {
    InvalidImage: ErrorStatus(grpc.StatusCode.INVALID_ARGUMENT),
    UnsupportedImage: ErrorStatus(grpc.StatusCode.INVALID_ARGUMENT),
    ImageTooLarge: ErrorStatus(grpc.StatusCode.INVALID_ARGUMENT),
    InvalidOptions: ErrorStatus(grpc.StatusCode.INVALID_ARGUMENT),
    Overloaded: ErrorStatus(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_delay_ms=1000),
    NotReady: ErrorStatus(grpc.StatusCode.UNAVAILABLE, retry_delay_ms=5000),
    ShuttingDown: ErrorStatus(grpc.StatusCode.UNAVAILABLE, retry_delay_ms=5000),
    DeadlineExceeded: ErrorStatus(grpc.StatusCode.DEADLINE_EXCEEDED),
    InferenceFailed: ErrorStatus(grpc.StatusCode.INTERNAL),
}
_UNKNOWN_ERROR = ErrorStatus(grpc.StatusCode.INTERNAL)


class MalformedMessage(Exception):
    """A request whose bytes are not a message of the expected type."""


@dataclass(frozen=True)
class Refusal:
    """An error as it is sent to the client."""

    status: grpc.StatusCode
    code: str  # stable, for programs
    detail: str  # for people
    retry_delay_ms: int | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The trailing metadata."""
        code = ((CODE_KEY, self.code),)
        if self.retry_delay_ms is None:
            return code
        return (*code, (RETRY_DELAY_KEY, str(self.retry_delay_ms)))


def refusal_of(error: Exception) -> Refusal:
    """Converts an exception; an unexpected one gives no details away."""
    if isinstance(error, MalformedMessage):
        return Refusal(grpc.StatusCode.INVALID_ARGUMENT, "malformed_message", str(error))
    if not isinstance(error, DetectionError):
        return Refusal(grpc.StatusCode.INTERNAL, "internal", "An unexpected error.")
    kind = _error_status(error)
    delay_ms = kind.retry_delay_ms
    if error.retry_after_seconds is not None:
        delay_ms = error.retry_after_seconds * 1000
    return Refusal(kind.status, error.code, error.detail, delay_ms)


def _error_status(error: DetectionError) -> ErrorStatus:
    """The entry for an error's class, or for its nearest base class."""
    for error_class in type(error).__mro__:
        if error_class in ERROR_STATUSES:
            return ERROR_STATUSES[error_class]
    return _UNKNOWN_ERROR
