"""Errors -> problem+json responses (RFC 9457); statuses are in `service.transport.http_status`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import orjson
from starlette.responses import Response
from starlette.types import Scope

from service.core.encoding import ItemError
from service.errors import DetectionError
from service.observability.request_scope import record_failure
from service.transport.http_request import request_id_of
from service.transport.http_status import error_kind, retry_after_s

_OIP_PREFIX = "/v2"
INTERNAL_ERROR = ItemError("internal", "Internal error", "An unexpected error.", status=500)
PROBLEM_MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class ProblemDetails:
    """The content of an error response; `title` defaults to the status's standard phrase."""

    status: int
    code: str
    detail: str
    title: str | None = None


def item_error(error: DetectionError) -> ItemError:
    """The error of one file of several."""
    kind = error_kind(error)
    return ItemError(
        code=error.code,
        title=kind.title,
        detail=error.detail,
        status=kind.status,
        retry_after_s=retry_after_s(error),
    )


def detection_problem(error: DetectionError, request_id: str) -> Response:
    """The response to a request that ended with a DetectionError."""
    kind = error_kind(error)
    wait_s = retry_after_s(error)
    headers = {} if wait_s is None else {"Retry-After": str(wait_s)}
    problem = ProblemDetails(kind.status, error.code, error.detail, kind.title)
    return problem_response(problem, request_id, headers)


def refusal_response(
    scope: Scope, problem: ProblemDetails, headers: Mapping[str, str] | None = None
) -> Response:
    """A response to a request that no route has seen, in the form of errors of its path."""
    if has_oip_form(scope["path"]):
        record_failure(problem.code, problem.detail)
        body = orjson.dumps({"error": problem.detail})
        return Response(body, problem.status, headers, media_type="application/json")
    return problem_response(problem, request_id_of(scope), headers)


def has_oip_form(path: str) -> bool:
    """Whether errors of a path have the form of the Open Inference Protocol."""
    return path.startswith(_OIP_PREFIX)


def problem_response(
    problem: ProblemDetails, request_id: str, headers: Mapping[str, str] | None = None
) -> Response:
    """A problem+json response; its `type` is a URN that ends with the stable code.

    It is also recorded as the failure of the request.
    """
    record_failure(problem.code, problem.detail)
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
    """The 500 response to an unexpected exception; only the log has its details."""
    problem = ProblemDetails(500, "internal", "An unexpected error.")
    return problem_response(problem, request_id)
