"""Errors -> HTTP: the adapter's one table of statuses, and problem+json (RFC 9457) answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import orjson
from starlette.responses import Response

from service.encoding import ItemError
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

PROBLEM_MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class ErrorKind:
    """How one kind of error is told over HTTP."""

    status: int
    title: str
    retry_after_s: int | None = None  # Retry-After where the error itself names no time


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


class RequestRefused(Exception):
    """A fault of the HTTP request itself, found before there is anything to detect in.

    Attributes:
        status: the HTTP status.
        code: stable, for programs.
        detail: for people; names what was wrong.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        """Keeps what the client will read."""
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail


class ClientGone(Exception):
    """The client closed its connection before the answer; nobody is there to be told."""


def error_kind(error: DetectionError) -> ErrorKind:
    """The table's row for an error, by its nearest listed class."""
    for error_class in type(error).__mro__:
        if error_class in ERROR_KINDS:
            return ERROR_KINDS[error_class]
    return _UNKNOWN_KIND


def retry_after_s(error: DetectionError) -> int | None:
    """In how many seconds trying again makes sense; None where it never does."""
    if error.retry_after_seconds is not None:
        return error.retry_after_seconds
    return error_kind(error).retry_after_s


def item_error(error: DetectionError) -> ItemError:
    """An error as it stands among the answers for several files."""
    kind = error_kind(error)
    return ItemError(
        code=error.code,
        title=kind.title,
        detail=error.detail,
        status=kind.status,
        retry_after_s=retry_after_s(error),
    )


def detection_problem(error: DetectionError, request_id: str) -> Response:
    """The answer to a request that a DetectionError ended."""
    kind = error_kind(error)
    wait_s = retry_after_s(error)
    headers = {} if wait_s is None else {"Retry-After": str(wait_s)}
    problem = Problem(kind.status, error.code, error.detail, kind.title)
    return problem_response(problem, request_id, headers)


@dataclass(frozen=True)
class Problem:
    """An error as a client reads it; `title` falls back to the status's own phrase."""

    status: int
    code: str
    detail: str
    title: str | None = None


def problem_response(
    problem: Problem, request_id: str, headers: Mapping[str, str] | None = None
) -> Response:
    """A problem+json answer; its `type` is a URN made of the stable code."""
    body = orjson.dumps(
        {
            "type": f"urn:lite-detr:problem:{problem.code}",
            "title": problem.title or HTTPStatus(problem.status).phrase,
            "status": problem.status,
            "detail": problem.detail,
            "code": problem.code,
            "request_id": request_id,
        }
    )
    return Response(body, problem.status, headers, media_type=PROBLEM_MEDIA_TYPE)
