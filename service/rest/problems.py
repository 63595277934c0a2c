"""Errors -> problem+json responses (RFC 9457); statuses are in `service.transport.http_status`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import orjson
from starlette.responses import Response

from service.core.encoding import ItemError
from service.errors import DetectionError
from service.transport.http_status import error_kind, retry_after_s

PROBLEM_MEDIA_TYPE = "application/problem+json"


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


def unexpected_problem(request_id: str) -> Response:
    """The bare 500 for what nobody meant to raise; the log has the rest."""
    return problem_response(Problem(500, "internal", "An unexpected error."), request_id)
