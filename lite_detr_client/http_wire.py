"""HTTP requests and responses, shared by both HTTP clients."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import httpx

from lite_detr_client.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    Failure,
    InvalidResponse,
    ServiceError,
    class_of_status,
    service_error,
)
from lite_detr_client.inputs import DetectOptions, checked_request_id
from lite_detr_client.results import Box, Detection, DetectionResult, Engine, Model, Timings

_TIMEOUT_HEADER = "X-Request-Timeout-Ms"
_REQUEST_ID_HEADER = "X-Request-Id"
_OK = 200
_STAGES = tuple(field.name for field in fields(Timings))
_ENGINE_FIELDS = tuple(field.name for field in fields(Engine))
# At the deadline the service sends an error; the client waits this much longer for it.
_GRACE_PERIOD_S = 0.5
# Errors of an image by itself, as the items of a response to several images have them.
_CODES_OF_IMAGES = frozenset(
    {
        "invalid_image",
        "unsupported_image",
        "image_too_large",
        "invalid_options",
        "deadline_exceeded",
        "inference_failed",
        "internal",
    }
)

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class HttpCall:
    """One call; each attempt builds a request from it."""

    method: str
    path: str
    params: tuple[tuple[str, str | int | float | bool | None], ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    files: tuple[tuple[str, tuple[str, bytes, str]], ...] = ()

    def build(
        self, client: httpx.Client | httpx.AsyncClient, remaining_s: float | None
    ) -> httpx.Request:
        """Builds the request of one attempt, with `remaining_s` seconds until the deadline."""
        headers = dict(self.headers)
        extensions: dict[str, Any] = {}
        if remaining_s is not None:
            headers[_TIMEOUT_HEADER] = _milliseconds(remaining_s)
            extensions["trace"] = _timeout_updates(client, time.monotonic() + remaining_s)
        return client.build_request(
            self.method,
            self.path,
            params=httpx.QueryParams(self.params),
            headers=headers,
            content=self.content,
            files=self.files or None,
            timeout=response_timeout_s(remaining_s),
            extensions=extensions,
        )


def response_timeout_s(remaining_s: float | None) -> float | None:
    """Returns the seconds to wait for a response; None: no limit."""
    return None if remaining_s is None else remaining_s + _GRACE_PERIOD_S


def _timeout_updates(
    client: httpx.Client | httpx.AsyncClient, deadline: float
) -> Callable[[str, Mapping[str, Any]], Awaitable[None] | None]:
    """Returns a function for httpx that updates the timeout header when the request is sent.

    A request may wait for a free connection, and for its opening, after it was built.

    Args:
        client: which sends the request.
        deadline: of the call, by time.monotonic().
    """

    def update(event: str, details: Mapping[str, Any]) -> None:
        if event.endswith(".send_request_headers.started"):
            name, request = _TIMEOUT_HEADER.lower().encode(), details["request"]
            milliseconds = _milliseconds(deadline - time.monotonic()).encode()
            request.headers = [
                (key, milliseconds if key.lower() == name else value)
                for key, value in request.headers
            ]

    async def update_async(event: str, details: Mapping[str, Any]) -> None:
        update(event, details)

    return update_async if isinstance(client, httpx.AsyncClient) else update


def _milliseconds(seconds: float) -> str:
    return f"{max(1.0, seconds * 1000):.0f}"


MODEL_CALL = HttpCall("GET", "/v1/models")
READY_CALL = HttpCall("GET", "/readyz")


def detect_call(image: bytes, options: DetectOptions, request_id: str | None) -> HttpCall:
    """Returns the call `POST /detect` with one image as the body."""
    headers = _id_header(request_id) | {"Content-Type": "application/octet-stream"}
    return HttpCall("POST", "/detect", _params(options), headers, content=image)


def batch_call(images: Sequence[bytes], options: DetectOptions, request_id: str | None) -> HttpCall:
    """Returns the call `POST /detect` with images as a multipart form."""
    files = tuple(
        ("file", (str(number), image, "application/octet-stream"))
        for number, image in enumerate(images)
    )
    return HttpCall("POST", "/detect", _params(options), _id_header(request_id), files=files)


def read_detect(response: httpx.Response) -> DetectionResult:
    """Reads the result of one image.

    Raises:
        ServiceError: if the call failed.
    """
    return _read(response, _result)


def read_batch(response: httpx.Response, count: int) -> list[DetectionResult | ServiceError]:
    """Reads one result or error per image, in order.

    Args:
        response: the response.
        count: number of images in the form. The response to a form with one image has the format of
            a single result.

    Raises:
        ServiceError: if the whole call failed.
    """

    def outcomes(body: dict[str, Any]) -> list[DetectionResult | ServiceError]:
        if count == 1:
            return [_result(body)]
        ids = [f"{body['request_id']}-{number}" for number in range(1, len(body["results"]) + 1)]
        return [_outcome(item, each) for item, each in zip(body["results"], ids, strict=True)]

    try:
        return _read(response, outcomes)
    except ServiceError as error:
        if count > 1 or not _is_of_image(response):
            raise
        return [error]


def read_model(response: httpx.Response) -> Model:
    """Reads the description of the served model.

    Raises:
        ServiceError: if the call failed.
    """
    return _read(response, _model)


def read_ready(response: httpx.Response) -> bool:
    """Reads whether the service accepts requests."""
    return response.status_code == _OK


def transport_error(error: httpx.HTTPError | TimeoutError) -> ServiceError:
    """Converts an error of httpx."""
    if isinstance(error, httpx.LocalProtocolError):  # its text has the header, such as the API key
        return ServiceError(
            Failure("invalid_request", "the request, such as a header of it, is not valid HTTP")
        )
    timed_out = isinstance(error, httpx.TimeoutException | TimeoutError)
    kind = DeadlineExceeded if timed_out else ConnectionFailed
    return kind(Failure(kind.code_of_class, str(error) or type(error).__name__))


def shown_cause(error: httpx.HTTPError | TimeoutError) -> BaseException | None:
    """Returns the error of httpx that tracebacks may show: none that may have the API key."""
    return None if isinstance(error, httpx.LocalProtocolError) else error


def _params(options: DetectOptions) -> tuple[tuple[str, str | int | float | bool | None], ...]:
    params: list[tuple[str, str | int | float | bool | None]] = []
    if options.threshold is not None:
        params.append(("threshold", options.threshold))
    if options.max_detections is not None:
        params.append(("max_detections", options.max_detections))
    if options.tile is not None:
        params.append(("tile", options.tile))
    if options.overlap is not None:
        params.append(("overlap", options.overlap))
    params.extend(("labels", label) for label in options.labels or ())
    return tuple(params)


def _id_header(request_id: str | None) -> dict[str, str]:
    request_id = checked_request_id(request_id)
    return {} if request_id is None else {_REQUEST_ID_HEADER: request_id}


def _read(response: httpx.Response, read: Callable[[dict[str, Any]], _Result]) -> _Result:
    if response.status_code != _OK:
        raise service_error(_problem(response))
    try:
        return read(response.json())
    except (ValueError, KeyError, TypeError, IndexError) as error:
        detail = f"the response is not one of this service: {type(error).__name__}"
        raise InvalidResponse(
            Failure(InvalidResponse.code_of_class, detail, str(response.status_code))
        ) from error


def _problem(response: httpx.Response) -> Failure:
    status = response.status_code
    try:
        body = response.json()
    except ValueError:
        body = {}
    problem = body if isinstance(body, dict) else {}
    return Failure(
        code=_code(problem.get("code"), status),
        detail=str(problem.get("detail") or problem.get("message") or response.reason_phrase),
        status=str(status),
        request_id=response.headers.get(_REQUEST_ID_HEADER),
        retry_after_s=_seconds(response.headers.get("Retry-After")),
    )


def _code(code: object, status: int) -> str:
    """Returns the code of a response, or that of its status if it has none.

    Responses of proxies and load balancers have no code, or repeat the status in its place.
    """
    text = "" if isinstance(code, bool) or not isinstance(code, str | int) else str(code).strip()
    if text and text != str(status):
        return text
    return class_of_status(str(status)).code_of_class or f"http_{status}"


def _is_of_image(response: httpx.Response) -> bool:
    """Whether the service returned the error of an image; other servers' errors have no code."""
    try:
        body = response.json()
    except ValueError:
        return False
    return isinstance(body, dict) and str(body.get("code")) in _CODES_OF_IMAGES


def _seconds(value: str | None) -> float | None:
    """Reads Retry-After in seconds; its other form, a date, is ignored."""
    return float(value) if value is not None and value.isascii() and value.isdigit() else None


def _outcome(item: dict[str, Any], request_id: str) -> DetectionResult | ServiceError:
    if "error" not in item:
        return _result(item)
    error = item["error"]
    return service_error(
        Failure(
            code=error["code"],
            detail=error["detail"],
            status=str(error["status"]),
            request_id=request_id,
            retry_after_s=error.get("retry_after_s"),
        )
    )


def _result(body: dict[str, Any]) -> DetectionResult:
    return DetectionResult(
        model_name=body["model"]["name"],
        model_version=body["model"]["version"],
        width=body["image"]["width"],
        height=body["image"]["height"],
        detections=tuple(
            Detection(item["label"], item["class_id"], item["score"], Box(**item["box"]))
            for item in body["detections"]
        ),
        # Stages that only a newer service has are ignored.
        timings_ms=Timings(**{stage: body["timings_ms"][stage] for stage in _STAGES}),
        request_id=body["request_id"],
    )


def _model(body: dict[str, Any]) -> Model:
    entry = body["models"][0]
    limits = entry["limits"]
    return Model(
        name=entry["name"],
        version=entry["version"],
        description=entry["description"],
        variant=entry["variant"],
        kernel=entry["kernel"],
        default_threshold=entry["default_threshold"],
        classes={item["id"]: item["name"] for item in entry["classes"]},
        max_request_bytes=limits["max_body_bytes"],
        max_image_pixels=limits["max_image_pixels"],
        max_images=limits["max_files"],
        max_detections=limits["max_detections"],
        formats=tuple(limits["formats"]),
        # Missing from older services; newer ones may have more fields.
        engines=tuple(
            Engine(**{name: item[name] for name in _ENGINE_FIELDS})
            for item in entry.get("engines", ())
        ),
        max_tiles=limits.get("max_tiles"),
    )
