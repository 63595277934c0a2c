from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from google.protobuf.message import Message

from service.errors import ShuttingDown
from service.observability.request_log import RequestLog
from service.observability.request_scope import current_scope
from service.rpc.pb import detection_pb2 as pb
from service.transport.grpc_call import Call, CallsInFlight, Context, open_call, parse_message
from service.transport.grpc_status import MalformedMessage, refusal_of


@dataclass
class Transport:
    """The part of gRPC's context that `open_call` uses."""

    remaining: float | None = None
    metadata: tuple[tuple[str, Any], ...] | None = ()

    def time_remaining(self) -> float | None:
        return self.remaining

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...] | None:
        return self.metadata

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        assert dict(metadata)["x-request-id"]

    def as_context(self) -> Context:
        return cast(Context, self)


def opened(transport: Transport) -> AbstractContextManager[Call]:
    return open_call(transport.as_context(), RequestLog(), "package.Service/Method")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    return 1000.0


@pytest.mark.parametrize("remaining", [None, math.inf])
def test_a_call_without_a_deadline_has_none(remaining: float | None) -> None:
    with opened(Transport(remaining)) as call:
        assert call.deadline is None


@pytest.mark.parametrize(("remaining", "left"), [(10.0, 9.995), (0.01, 0.009), (0.0, 0.0)])
def test_the_deadline_is_slightly_before_that_of_the_transport(
    now: float, remaining: float, left: float
) -> None:
    with opened(Transport(remaining)) as call:
        assert call.deadline == pytest.approx(now + left)


@pytest.mark.parametrize("metadata", [None, (), (("x-request-id", b"bytes"),)])
def test_a_call_without_ids_gets_generated_ones(
    metadata: tuple[tuple[str, Any], ...] | None,
) -> None:
    with opened(Transport(metadata=metadata)) as first:
        assert len(first.request_id) == 32
        assert dict(first.metadata) == {
            "x-request-id": first.request_id,
            "traceparent": first.scope.trace.traceparent,
        }
    with opened(Transport(metadata=metadata)) as second:
        assert first.request_id != second.request_id
        assert first.scope.trace.trace_id != second.scope.trace.trace_id


def test_a_call_is_the_current_request_while_it_is_in_flight() -> None:
    with opened(Transport()) as call:
        assert current_scope() is call.scope
        assert call.scope.method == "package.Service/Method"
    assert current_scope() is None


def test_a_message_with_too_many_fields_is_refused_before_parsing() -> None:
    many = b"\x0a\x00" * 10_001  # empty requests
    with pytest.raises(MalformedMessage, match="more than 10000 fields"):
        parse_message(pb.DetectBatchRequest, many)
    assert len(parse_message(pb.DetectBatchRequest, many[:-2]).requests) == 10_000


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(MalformedMessage, match=r"type litedetr\.v1\.DetectRequest"):
        parse_message(pb.DetectRequest, b"\xff\xff")


async def test_a_drain_waits_for_the_last_call() -> None:
    calls = CallsInFlight()
    await calls.wait_idle()
    outcomes: list[str] = []
    works = [asyncio.get_running_loop().create_future() for _ in range(2)]

    async def call_for(work: asyncio.Future[str]) -> str:
        transport = Transport()
        with opened(transport) as call:
            return await calls.run(call, transport.as_context(), work, refusal_of, outcomes.append)

    first, last = (asyncio.create_task(call_for(work)) for work in works)
    await asyncio.sleep(0)
    works[0].set_result("first")
    assert await first == "first"
    waiting = asyncio.create_task(calls.wait_idle())
    await asyncio.sleep(0)
    assert not waiting.done()
    last.cancel()
    await asyncio.wait_for(waiting, 120)
    assert outcomes == ["ok", "cancelled"]


@dataclass
class StreamTransport(Transport):
    """The part of gRPC's context that `run_stream` uses."""

    calls: CallsInFlight = field(default_factory=CallsInFlight)
    drains: bool = False  # while its first metadata are sent
    written: list[Message] = field(default_factory=list)

    async def send_initial_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        assert dict(metadata)["x-request-id"]
        if self.drains:
            self.calls.begin_drain()

    async def write(self, message: Message) -> None:
        self.written.append(message)

    async def run(self, messages: AsyncIterator[bytes]) -> None:
        async def respond(index: int, data: bytes) -> pb.DetectRequest:
            return pb.DetectRequest(request_id=f"{index}", image=data)

        with opened(self) as call:
            await self.calls.run_stream(messages, call, self.as_context(), respond, 2)


async def test_each_message_of_a_stream_gets_a_response() -> None:
    async def messages() -> AsyncIterator[bytes]:
        for data in (b"a", b"b", b"c"):
            yield data

    transport = StreamTransport()
    await transport.run(messages())
    assert transport.written == [
        pb.DetectRequest(request_id=f"{index}", image=data)
        for index, data in enumerate((b"a", b"b", b"c"))
    ]


async def test_a_drain_ends_a_stream_after_the_messages_that_were_read() -> None:
    transport = StreamTransport()

    async def messages() -> AsyncIterator[bytes]:
        yield b"a"
        transport.calls.begin_drain()
        await asyncio.Event().wait()

    with pytest.raises(ShuttingDown):
        await transport.run(messages())
    assert len(transport.written) == 1


@pytest.mark.parametrize("early", [True, False], ids=["before", "while it opens"])
async def test_a_stream_during_a_drain_is_refused_before_reading(early: bool) -> None:
    transport = StreamTransport(drains=not early)
    read: list[bytes] = []

    async def messages() -> AsyncIterator[bytes]:
        read.append(b"")
        yield b""

    if early:
        transport.calls.begin_drain()
    with pytest.raises(ShuttingDown, match="requests accepted before are finished"):
        await transport.run(messages())
    assert not read
    assert not transport.written
