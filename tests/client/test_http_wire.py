"""HTTP clients against handwritten responses: what is sent and how responses are read."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import asdict

import httpx
import pytest

from lite_detr_client import (
    AsyncHttpClient,
    ConnectionFailed,
    DeadlineExceeded,
    DetectOptions,
    Engine,
    HttpClient,
    ImageTooLarge,
    InvalidResponse,
    NotReady,
    Overloaded,
    RetryPolicy,
    ServiceError,
    Unauthenticated,
)

RESULT = {
    "model": {"name": "m", "version": "v"},
    "image": {"width": 4, "height": 3},
    "detections": [],
    "timings_ms": dict.fromkeys(
        ("read", "decode", "queue", "assemble", "copy", "forward", "postprocess", "total"), 0.5
    ),
    "request_id": "r",
}
ENTRY = {
    "name": "m",
    "version": "v",
    "description": "",
    "variant": "x",
    "kernel": "cuda",
    "default_threshold": 0.5,
    "classes": [{"id": 0, "name": "a"}],
    "limits": {
        "max_body_bytes": 1,
        "max_image_pixels": 2,
        "max_files": 3,
        "max_detections": 4,
        "formats": ["png"],
    },
}
ONCE = RetryPolicy(attempts=1)
SOON = RetryPolicy(attempts=3, first_pause_s=0)

Respond = Callable[[httpx.Request], httpx.Response]


def client(respond: Respond, retries: RetryPolicy = ONCE) -> HttpClient:
    return HttpClient("http://service", retries=retries, transport=httpx.MockTransport(respond))


def test_options_request_id_and_timeout_are_sent() -> None:
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=RESULT)

    options = DetectOptions(
        threshold=0.25, max_detections=3, labels=("a", "b"), tile="auto", overlap=0.3
    )
    result = client(respond).detect(b"image", options, timeout_s=2, request_id="mine")
    assert (result.width, result.height, result.detections) == (4, 3, ())
    (request,) = seen
    assert request.url.path == "/detect"
    assert request.url.params.multi_items() == [
        ("threshold", "0.25"),
        ("max_detections", "3"),
        ("tile", "auto"),
        ("overlap", "0.3"),
        ("labels", "a"),
        ("labels", "b"),
    ]
    assert request.content == b"image"
    assert request.headers["x-request-id"] == "mine"
    assert 1000 < float(request.headers["x-request-timeout-ms"]) <= 2000


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (413, ImageTooLarge),
        (429, Overloaded),
        (502, ConnectionFailed),
        (503, NotReady),
        (504, DeadlineExceeded),
    ],
)
def test_responses_of_proxies_are_mapped_by_status(status: int, error: type[ServiceError]) -> None:
    with pytest.raises(error) as caught:
        client(lambda _: httpx.Response(status, text="<html>")).detect(b"image")
    assert caught.value.failure.status == str(status)


def test_unknown_status_becomes_the_code() -> None:
    with pytest.raises(ServiceError) as caught:
        client(lambda _: httpx.Response(418, json=["tea"])).detect(b"image")
    assert caught.value.code == "http_418"


@pytest.mark.parametrize("body", ["<html>", "[]", "{}", '{"detections": 3}'])
def test_response_of_another_service_is_invalid(body: str) -> None:
    with pytest.raises(InvalidResponse):
        client(lambda _: httpx.Response(200, text=body)).detect(b"image")


@pytest.mark.parametrize(
    ("fields", "engines"),
    [
        ({}, ()),  # an older service
        ({"engines": []}, ()),
        (
            {
                "engines": [
                    {"device": "cuda:0", "kernel": "cuda", "precision": "fp16", "cuda_graphs": 432},
                    {"device": "cpu", "kernel": "cpu", "precision": "fp32", "cuda_graphs": 0},
                ]
            },
            (Engine("cuda:0", "cuda", "fp16", 432), Engine("cpu", "cpu", "fp32", 0)),
        ),
        (
            {"engines": [asdict(Engine("cpu", "cpu", "bf16", 0)) | {"unknown_field": 1}]},
            (Engine("cpu", "cpu", "bf16", 0),),
        ),
    ],
    ids=["missing", "empty", "two", "unknown-field"],
)
async def test_engines_are_read_if_present(
    fields: dict[str, object], engines: tuple[Engine, ...]
) -> None:
    def respond(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"models": [ENTRY | fields]})

    assert client(respond).model().engines == engines
    transport = httpx.MockTransport(respond)
    async with AsyncHttpClient("http://service", retries=ONCE, transport=transport) as http:
        assert (await http.model()).engines == engines


@pytest.mark.parametrize(("limits", "expected"), [({}, None), ({"max_tiles": 0}, 0)])
def test_the_limit_of_tiles_is_missing_from_older_services(
    limits: dict[str, int], expected: int | None
) -> None:
    entry = ENTRY | {"limits": ENTRY["limits"] | limits}  # type: ignore[operator]
    described = client(lambda _: httpx.Response(200, json={"models": [entry]})).model()
    assert described.max_tiles == expected


@pytest.mark.parametrize("models", [[], [ENTRY | {"engines": [{"device": "cpu"}]}]])
def test_incomplete_model_is_an_invalid_response(models: list[dict[str, object]]) -> None:
    with pytest.raises(InvalidResponse):
        client(lambda _: httpx.Response(200, json={"models": models})).model()


def test_overloaded_service_is_retried_after_retry_after() -> None:
    responses = [
        httpx.Response(429, headers={"Retry-After": "0"}),
        httpx.Response(503, headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}),
        httpx.Response(200, json=RESULT),
    ]
    assert client(lambda _: responses.pop(0), SOON).detect(b"image").request_id == "r"


def test_retry_after_is_read() -> None:
    with pytest.raises(Overloaded) as caught:
        client(lambda _: httpx.Response(429, headers={"Retry-After": "7"})).detect(b"image")
    assert caught.value.retry_after_s == 7


def test_unreachable_service_is_retried_then_raises() -> None:
    attempts: list[int] = []

    def respond(request: httpx.Request) -> httpx.Response:
        attempts.append(1)
        raise httpx.ConnectError("connection refused", request=request)

    http = client(respond, SOON)
    with pytest.raises(ConnectionFailed, match="connection refused"):
        http.detect(b"image")
    assert len(attempts) == 3
    assert not http.ready()
    assert len(attempts) == 4


async def test_asynchronous_client_retries() -> None:
    responses = [httpx.Response(429), httpx.Response(200, json=RESULT)]
    transport = httpx.MockTransport(lambda _: responses.pop(0))
    async with AsyncHttpClient("http://service", retries=SOON, transport=transport) as http:
        assert (await http.detect(b"image")).request_id == "r"


async def test_read_timeout_raises_deadline_exceeded() -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("timed out", request=request)

    transport = httpx.MockTransport(respond)
    async with AsyncHttpClient("http://service", retries=SOON, transport=transport) as http:
        with pytest.raises(DeadlineExceeded):
            await http.detect(b"image", timeout_s=1)


def _problem(status: int, code: str) -> Respond:
    return lambda _: httpx.Response(status, json={"code": code, "detail": "why"})


@pytest.mark.parametrize(
    "respond",
    [
        _problem(401, "unauthenticated"),
        _problem(403, "forbidden"),
        _problem(404, "not_found"),
        _problem(408, "body_timeout"),
        _problem(413, "body_too_large"),
        _problem(429, "overloaded"),
        _problem(503, "not_ready"),
        lambda _: httpx.Response(413, text="<html>"),
        lambda _: httpx.Response(504, json=["from a proxy"]),
        lambda _: httpx.Response(200, text="<html>"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
async def test_an_error_of_the_request_is_raised_for_any_number_of_images(
    respond: Respond, count: int
) -> None:
    with pytest.raises(ServiceError):
        client(respond).detect_batch([b"image"] * count)
    transport = httpx.MockTransport(respond)
    async with AsyncHttpClient("http://service", retries=ONCE, transport=transport) as http:
        with pytest.raises(ServiceError):
            await http.detect_batch([b"image"] * count)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "invalid_image"),
        (415, "unsupported_image"),
        (413, "image_too_large"),
        (422, "invalid_options"),
        (500, "inference_failed"),
        (500, "internal"),
        (504, "deadline_exceeded"),
    ],
)
async def test_the_error_of_the_only_image_is_its_outcome(status: int, code: str) -> None:
    respond = _problem(status, code)
    (error,) = client(respond).detect_batch([b"image"])
    assert isinstance(error, ServiceError)
    assert error.code == code
    transport = httpx.MockTransport(respond)
    async with AsyncHttpClient("http://service", retries=ONCE, transport=transport) as http:
        (again,) = await http.detect_batch([b"image"])
    assert isinstance(again, ServiceError)
    assert again.code == code


SECRET = "ldk_SECRET"


async def test_a_request_that_is_not_valid_http_is_not_retried_and_its_headers_are_not_shown() -> (
    None
):
    attempts: list[int] = []

    def respond(request: httpx.Request) -> httpx.Response:
        attempts.append(1)
        text = f"Illegal header value b'Bearer {SECRET}\\n'"
        raise httpx.LocalProtocolError(text, request=request)

    transport = httpx.MockTransport(respond)
    async with AsyncHttpClient("http://service", retries=SOON, transport=transport) as http:
        with pytest.raises(ServiceError) as caught_too:
            await http.detect(b"image")
    with pytest.raises(ServiceError) as caught:
        client(respond, SOON).detect(b"image")
    assert len(attempts) == 2
    for error in (caught.value, caught_too.value):
        assert (error.code, error.retryable) == ("invalid_request", False)
        assert SECRET not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("status", "body", "error", "code"),
    [
        (503, {"code": "replica_lost"}, NotReady, "replica_lost"),
        (503, {"code": 503, "message": "no upstream"}, NotReady, "not_ready"),
        (503, {"code": "503"}, NotReady, "not_ready"),
        (503, {"code": "UNAVAILABLE"}, NotReady, "UNAVAILABLE"),
        (503, {"code": 14}, NotReady, "14"),
        (503, {"code": ["a"]}, NotReady, "not_ready"),
        (503, {"code": True}, NotReady, "not_ready"),
        (503, {"code": ""}, NotReady, "not_ready"),
        (502, {"code": "bad_gateway"}, ConnectionFailed, "bad_gateway"),
        (429, {"code": "quota"}, Overloaded, "quota"),
        (429, {"code": 429}, Overloaded, "overloaded"),
        (504, {"code": 504}, DeadlineExceeded, "deadline_exceeded"),
        (401, {"code": "invalid_token"}, Unauthenticated, "invalid_token"),
        (413, {"code": "too_long"}, ImageTooLarge, "too_long"),
        (500, {"code": 500}, ServiceError, "http_500"),
        (500, {"code": "new_code"}, ServiceError, "new_code"),
        (400, {"code": "overloaded"}, Overloaded, "overloaded"),  # a known code takes precedence
    ],
)
async def test_an_unknown_code_is_treated_by_its_status(
    status: int, body: dict[str, object], error: type[ServiceError], code: str
) -> None:
    def respond(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, json=body, headers={"Retry-After": "0"})

    transport = httpx.MockTransport(respond)
    async with AsyncHttpClient("http://service", retries=ONCE, transport=transport) as http:
        with pytest.raises(error) as caught_too:
            await http.detect(b"image")
    with pytest.raises(error) as caught:
        client(respond).detect_batch([b"image", b"image"])
    for failure in (caught.value, caught_too.value):
        assert type(failure) is error
        assert (failure.code, failure.failure.status) == (code, str(status))
        assert failure.retry_after_s == 0
        assert code in str(failure)
    if error.retryable:
        responses = [respond(httpx.Request("POST", "/")), httpx.Response(200, json=RESULT)]
        assert client(lambda _: responses.pop(0), SOON).detect(b"image").request_id == "r"


def test_the_message_of_a_proxy_is_the_detail() -> None:
    respond = {"code": 503, "message": "no upstream"}
    with pytest.raises(NotReady, match="no upstream"):
        client(lambda _: httpx.Response(503, json=respond)).detect(b"image")


def test_an_unknown_code_of_one_image_is_treated_by_its_status() -> None:
    error = {"code": "replica_lost", "detail": "why", "status": 503, "retry_after_s": 1}
    body = {"request_id": "r", "results": [RESULT, {"error": error}]}
    outcomes = client(lambda _: httpx.Response(200, json=body)).detect_batch([b"image"] * 2)
    assert isinstance(outcomes[1], NotReady)
    assert (outcomes[1].code, outcomes[1].retry_after_s) == ("replica_lost", 1)
