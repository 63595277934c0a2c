"""HTTP clients against handwritten responses: what is sent and how responses are read."""

from __future__ import annotations

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
