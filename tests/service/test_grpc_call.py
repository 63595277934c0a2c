from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Any, cast

import pytest

from service.grpc_call import CallsUnderWay, Context, open_call, parse_message, sane_request_id
from service.grpc_status import MalformedMessage
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


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    return 1000.0


@pytest.mark.parametrize("remaining", [None, math.inf])
def test_a_call_without_a_deadline_has_none(remaining: float | None) -> None:
    assert open_call(Transport(remaining).as_context()).deadline is None


@pytest.mark.parametrize(("remaining", "left"), [(10.0, 9.995), (0.01, 0.009), (0.0, 0.0)])
def test_work_ends_a_little_before_the_transport_gives_up(
    now: float, remaining: float, left: float
) -> None:
    deadline = open_call(Transport(remaining).as_context()).deadline
    assert deadline == pytest.approx(now + left)


@pytest.mark.parametrize("metadata", [None, (), (("x-request-id", b"bytes"),)])
def test_a_call_without_a_name_gets_one(metadata: tuple[tuple[str, Any], ...] | None) -> None:
    first = open_call(Transport(metadata=metadata).as_context())
    second = open_call(Transport(metadata=metadata).as_context())
    assert len(first.request_id) == 32
    assert first.request_id != second.request_id
    assert dict(first.metadata) == {"x-request-id": first.request_id}


@pytest.mark.parametrize(
    "traceparent",
    [
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
    ],
)
def test_a_trace_context_that_is_not_valid_is_dropped(traceparent: str) -> None:
    call = open_call(Transport(metadata=(("traceparent", traceparent),)).as_context())
    assert call.traceparent is None


@pytest.mark.parametrize("name", ["", "a b", "a,b", "x" * 129, "line\n", "ä", 7, None])
def test_names_that_would_spoil_a_log_are_not_used(name: object) -> None:
    assert sane_request_id(name) is None


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
