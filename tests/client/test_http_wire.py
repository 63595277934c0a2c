"""The HTTP clients against answers made by hand: what is sent, and how oddities are read."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from lite_detr_client import (
    AsyncHttpClient,
    ConnectionFailed,
    DeadlineExceeded,
    DetectOptions,
    HttpClient,
    ImageTooLarge,
    NotReady,
    Overloaded,
    RetryPolicy,
    ServiceError,
    UnreadableAnswer,
)

ANSWER = {
    "model": {"name": "m", "version": "v"},
    "image": {"width": 4, "height": 3},
    "detections": [],
    "timings_ms": dict.fromkeys(
        ("read", "decode", "queue", "assemble", "copy", "forward", "postprocess", "total"), 0.5
    ),
    "request_id": "r",
}
ONCE = RetryPolicy(attempts=1)
SOON = RetryPolicy(attempts=3, first_pause_s=0)

Respond = Callable[[httpx.Request], httpx.Response]


def client(respond: Respond, retries: RetryPolicy = ONCE) -> HttpClient:
    return HttpClient("http://service", retries=retries, transport=httpx.MockTransport(respond))


def test_options_id_and_time_travel_with_the_image() -> None:
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=ANSWER)

    options = DetectOptions(threshold=0.25, max_detections=3, labels=("a", "b"))
    answer = client(respond).detect(b"image", options, timeout_s=2, request_id="mine")
    assert (answer.width, answer.height, answer.detections) == (4, 3, ())
    (request,) = seen
    assert request.url.path == "/detect"
    assert request.url.params.multi_items() == [
        ("threshold", "0.25"),
        ("max_detections", "3"),
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
def test_an_answer_of_something_in_between_is_understood(
    status: int, error: type[ServiceError]
) -> None:
    with pytest.raises(error) as caught:
        client(lambda _: httpx.Response(status, text="<html>")).detect(b"image")
    assert caught.value.failure.status == str(status)


def test_an_unknown_status_is_named() -> None:
    with pytest.raises(ServiceError) as caught:
        client(lambda _: httpx.Response(418, json=["tea"])).detect(b"image")
    assert caught.value.code == "http_418"


@pytest.mark.parametrize("body", ["<html>", "[]", "{}", '{"detections": 3}'])
def test_an_answer_of_another_service_is_told(body: str) -> None:
    with pytest.raises(UnreadableAnswer):
        client(lambda _: httpx.Response(200, text=body)).detect(b"image")


def test_a_busy_service_is_asked_again_when_it_said() -> None:
    responses = [
        httpx.Response(429, headers={"Retry-After": "0"}),
        httpx.Response(503, headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}),
        httpx.Response(200, json=ANSWER),
    ]
    assert client(lambda _: responses.pop(0), SOON).detect(b"image").request_id == "r"


def test_retry_after_is_read() -> None:
    with pytest.raises(Overloaded) as caught:
        client(lambda _: httpx.Response(429, headers={"Retry-After": "7"})).detect(b"image")
    assert caught.value.retry_after_s == 7


def test_an_unreachable_service_is_tried_again_and_told() -> None:
    tries: list[int] = []

    def respond(request: httpx.Request) -> httpx.Response:
        tries.append(1)
        raise httpx.ConnectError("nobody there", request=request)

    http = client(respond, SOON)
    with pytest.raises(ConnectionFailed, match="nobody there"):
        http.detect(b"image")
    assert len(tries) == 3
    assert not http.ready()
    assert len(tries) == 4


async def test_the_asynchronous_client_does_the_same() -> None:
    responses = [httpx.Response(429), httpx.Response(200, json=ANSWER)]
    transport = httpx.MockTransport(lambda _: responses.pop(0))
    async with AsyncHttpClient("http://service", retries=SOON, transport=transport) as http:
        assert (await http.detect(b"image")).request_id == "r"


async def test_silence_ends_with_the_deadline() -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("silence", request=request)

    transport = httpx.MockTransport(respond)
    async with AsyncHttpClient("http://service", retries=SOON, transport=transport) as http:
        with pytest.raises(DeadlineExceeded):
            await http.detect(b"image", timeout_s=1)
