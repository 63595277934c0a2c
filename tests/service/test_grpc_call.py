from __future__ import annotations

import asyncio
import math
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import pytest

from service.grpc_call import Call, CallsUnderWay, Context, open_call, parse_message
from service.grpc_status import MalformedMessage
from service.journal import Journal
from service.request_scope import current_scope
from service.rpc.pb import detection_pb2 as pb


@dataclass
class Transport:
    """Offers what `open_call` asks of gRPC's context."""

    remaining: float | None = None
    metadata: tuple[tuple[str, Any], ...] | None = ()

    def time_remaining(self) -> float | None:
        return self.remaining

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...] | None:
        return self.metadata

    def as_context(self) -> Context:
        return cast(Context, self)


def opened(transport: Transport) -> AbstractContextManager[Call]:
    return open_call(transport.as_context(), Journal(), "package.Service/Method")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    return 1000.0


@pytest.mark.parametrize("remaining", [None, math.inf])
def test_a_call_without_a_deadline_has_none(remaining: float | None) -> None:
    with opened(Transport(remaining)) as call:
        assert call.deadline is None


@pytest.mark.parametrize(("remaining", "left"), [(10.0, 9.995), (0.01, 0.009), (0.0, 0.0)])
def test_work_ends_a_little_before_the_transport_gives_up(
    now: float, remaining: float, left: float
) -> None:
    with opened(Transport(remaining)) as call:
        assert call.deadline == pytest.approx(now + left)


@pytest.mark.parametrize("metadata", [None, (), (("x-request-id", b"bytes"),)])
def test_a_call_without_names_gets_some(metadata: tuple[tuple[str, Any], ...] | None) -> None:
    with opened(Transport(metadata=metadata)) as first:
        assert len(first.request_id) == 32
        assert dict(first.metadata) == {
            "x-request-id": first.request_id,
            "traceparent": first.scope.trace.traceparent,
        }
    with opened(Transport(metadata=metadata)) as second:
        assert first.request_id != second.request_id
        assert first.scope.trace.trace_id != second.scope.trace.trace_id


def test_a_call_is_the_current_request_while_it_is_under_way() -> None:
    with opened(Transport()) as call:
        assert current_scope() is call.scope
        assert call.scope.method == "package.Service/Method"
    assert current_scope() is None


def test_a_message_of_very_many_fields_is_refused_unparsed() -> None:
    crowd = b"\x0a\x00" * 10_001  # empty requests
    with pytest.raises(MalformedMessage, match="more than 10000 fields"):
        parse_message(pb.DetectBatchRequest, crowd)
    assert len(parse_message(pb.DetectBatchRequest, crowd[:-2]).requests) == 10_000


def test_a_message_that_is_none_is_refused_by_its_type() -> None:
    with pytest.raises(MalformedMessage, match=r"type litedetr\.v1\.DetectRequest"):
        parse_message(pb.DetectRequest, b"\xff\xff")


async def test_a_drain_waits_for_the_last_call() -> None:
    calls = CallsUnderWay()
    await calls.wait_idle()
    calls.begin()
    calls.begin()
    calls.end()
    waiting = asyncio.create_task(calls.wait_idle())
    await asyncio.sleep(0)
    assert not waiting.done()
    calls.end()
    await waiting
