"""Bodies that are too large, too slow or incomplete, and clients that disconnect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

import pytest
from fastapi import FastAPI
from starlette.types import Message

from service.rest import create_app
from service.rest.unread_body import DiscardUnreadBody
from service.settings import load_settings
from tests.service.rest.conftest import MakeImage
from tests.service.rest.standin import StandIn

LIMIT = 10_000


class Call:
    """One POST /detect, message by message; after the last one the client sends nothing."""

    def __init__(self, messages: Iterable[Message], headers: dict[str, str] | None = None) -> None:
        self.messages = list(messages)
        self.headers = headers or {}
        self.received = 0
        self.sent: list[Message] = []
        self.leave = asyncio.Event()

    async def receive(self) -> Message:
        if self.received < len(self.messages):
            self.received += 1
            return self.messages[self.received - 1]
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def run(self, app: FastAPI) -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/detect",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in self.headers.items()],
        }
        await app(scope, self.receive, self.send)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


class SlowCall(Call):
    """A body that arrives byte by byte without end."""

    def __init__(self, headers: dict[str, str]) -> None:
        super().__init__((), headers)

    async def receive(self) -> Message:
        self.received += 1
        await asyncio.sleep(0.01)
        return chunk(b"x", more=True) if not self.sent else {"type": "http.disconnect"}


def chunk(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def build(standin: StandIn, **settings: float) -> FastAPI:
    return create_app(standin.as_detector(), load_settings(max_body_bytes=LIMIT, **settings))


async def test_an_announced_size_over_the_limit_is_refused_before_the_body(
    standin: StandIn,
) -> None:
    call = Call([chunk(b"x" * 20_000)], {"content-length": "20000", "expect": "100-continue"})
    await call.run(build(standin))
    assert call.status == 413
    assert call.received == 0


async def test_a_body_is_refused_as_soon_as_it_exceeds_the_limit(standin: StandIn) -> None:
    long = [chunk(b"x" * 4000, more=True)] * 1000 + [chunk(b"x")]
    call = Call(long, {"transfer-encoding": "chunked"})
    task = asyncio.create_task(call.run(build(standin)))
    while not call.body:
        await asyncio.sleep(0)
    assert call.status == 413
    assert call.sent[1]["more_body"] is True  # all is said; only the end is held back
    assert not standin.deadlines
    await task
    assert call.sent[-1] == {"type": "http.response.body", "body": b""}


async def test_a_body_with_a_false_content_length_is_limited_too(standin: StandIn) -> None:
    call = Call([chunk(b"x" * 6000, more=True), chunk(b"x" * 6000)], {"content-length": "10"})
    await call.run(build(standin))
    assert call.status == 413


async def test_a_body_of_exactly_the_limit_is_read(standin: StandIn) -> None:
    call = Call([chunk(b"x" * LIMIT)], {"content-length": str(LIMIT)})
    await call.run(build(standin))
    assert call.status != 413


@pytest.mark.parametrize("length", ["x", "-5", "1e3", ""])
async def test_a_content_length_that_is_not_a_number_is_refused(
    standin: StandIn, length: str
) -> None:
    call = Call([chunk(b"x")], {"content-length": length})
    await call.run(build(standin))
    assert call.status == 400
    assert b"Content-Length" in call.body


async def test_an_image_in_many_chunks_is_one_image(standin: StandIn, image: MakeImage) -> None:
    data = image()
    pieces = [chunk(data[start : start + 100], more=True) for start in range(0, len(data), 100)]
    call = Call([*pieces, chunk(b"")])
    await call.run(build(standin))
    assert call.status == 200


async def test_a_body_that_stalls_times_out(standin: StandIn) -> None:
    call = Call([chunk(b"x", more=True)], {"transfer-encoding": "chunked"})
    task = asyncio.create_task(call.run(build(standin, body_timeout_seconds=0.01)))
    while not call.sent:
        await asyncio.sleep(0)
    call.leave.set()
    await task
    assert call.status == 408
    assert b"body_timeout" in call.body


async def test_a_body_that_arrives_slowly_times_out_though_it_never_stalls(
    standin: StandIn,
) -> None:
    limits = {"body_timeout_seconds": 0.05, "body_min_bytes_per_second": 1_000_000}
    call = SlowCall(headers={"transfer-encoding": "chunked"})
    await call.run(build(standin, **limits))
    assert call.status == 408
    assert b"bytes a second" in call.body
    assert call.received < 100


async def test_the_bodies_of_all_requests_are_limited_together(
    standin: StandIn, image: MakeImage
) -> None:
    data = image()
    app = build(standin, max_bodies_bytes=len(data) + 10)
    first = Call([chunk(data[:-1], more=True)], {"transfer-encoding": "chunked"})
    task = asyncio.create_task(first.run(app))
    await asyncio.sleep(0)
    second = Call([chunk(data)], {"content-length": str(len(data))})
    await second.run(app)
    assert second.status == 429
    first.leave.set()
    await task
    third = Call([chunk(data)], {"content-length": str(len(data))})
    await third.run(app)
    assert third.status == 200


async def test_a_deadline_applies_while_the_body_is_read(standin: StandIn) -> None:
    headers = {"transfer-encoding": "chunked", "x-request-timeout-ms": "10"}
    call = Call([chunk(b"x", more=True)], headers)
    task = asyncio.create_task(call.run(build(standin)))
    while not call.sent:
        await asyncio.sleep(0)
    call.leave.set()
    await task
    assert call.status == 504


async def test_the_timeout_header_becomes_the_deadline(standin: StandIn, image: MakeImage) -> None:
    started = time.monotonic()
    call = Call([chunk(image())], {"x-request-timeout-ms": "5000"})
    await call.run(build(standin))
    deadline = standin.deadlines[0]
    assert deadline is not None
    assert started + 5 <= deadline <= time.monotonic() + 5


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "", "5_000", "\u0665"])
async def test_an_invalid_timeout_header_is_refused_by_name(standin: StandIn, value: str) -> None:
    call = Call([chunk(b"x")], {"x-request-timeout-ms": value})
    await call.run(build(standin))
    assert call.status == 422
    assert b"X-Request-Timeout-Ms" in call.body


async def test_a_client_that_disconnects_within_its_body_is_counted_and_gets_no_response(
    standin: StandIn,
) -> None:
    call = Call([chunk(b"x", more=True), {"type": "http.disconnect"}], {"content-length": "9"})
    await call.run(build(standin))
    assert not call.sent
    assert outcome_count(standin, "cancelled") == 1


async def test_a_client_that_disconnects_cancels_its_detection(
    standin: StandIn, image: MakeImage
) -> None:
    standin.hold = asyncio.Event()
    call = Call([chunk(image())])
    task = asyncio.create_task(call.run(build(standin)))
    await standin.started.wait()
    call.leave.set()
    await task
    assert standin.cancelled
    assert not call.sent
    assert outcome_count(standin, "cancelled") == 1


async def test_a_cancelled_request_cancels_its_detection(
    standin: StandIn, image: MakeImage
) -> None:
    standin.hold = asyncio.Event()
    call = Call([chunk(image())])
    task = asyncio.create_task(call.run(build(standin)))
    await standin.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert standin.cancelled
    assert outcome_count(standin, "cancelled") == 1


async def test_other_protocols_pass_through() -> None:
    seen = []

    async def app(scope: object, _receive: object, _send: object) -> None:
        seen.append(scope)

    scope = {"type": "lifespan"}
    await DiscardUnreadBody(app)(scope, Call([]).receive, Call([]).send)
    assert seen == [scope]


def outcome_count(standin: StandIn, outcome: str) -> float:
    name = "lite_detr_requests_total"
    labels = {"protocol": "http", "outcome": outcome}
    return standin.metrics.registry.get_sample_value(name, labels) or 0.0
