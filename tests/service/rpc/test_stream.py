"""DetectStream: errors of single frames, and how a stream ends."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from service.errors import DeadlineExceeded
from service.rpc.pb import detection_pb2 as pb
from service.rpc.server import RpcServer
from tests.service.rest.standin import StandIn
from tests.service.rpc.caller import Caller, trailing


async def test_a_frame_that_fails_does_not_end_its_stream(caller: Caller, image: bytes) -> None:
    good = pb.DetectRequest(image=image).SerializeToString()
    bad = pb.DetectRequest(image=image[:90], request_id="bad").SerializeToString()
    stream = caller.raw_stream(
        iter([good, bad, b"\xff\xff", good]), metadata=(("x-request-id", "v"),)
    )
    outcomes = [outcome async for outcome in stream]
    assert [outcome.index for outcome in outcomes] == [0, 1, 2, 3]
    assert [outcome.WhichOneof("outcome") for outcome in outcomes] == [
        "response",
        "error",
        "error",
        "response",
    ]
    assert (outcomes[1].error.code, outcomes[1].error.request_id) == ("invalid_image", "bad")
    assert (outcomes[2].error.code, outcomes[2].error.request_id) == ("malformed_message", "v-3")
    assert outcomes[3].response.request_id == "v-4"
    assert await stream.code() is grpc.StatusCode.OK
    assert dict(await stream.initial_metadata())["x-request-id"] == "v"


async def test_a_frame_past_its_deadline_is_reported_in_the_stream(
    caller: Caller, image: bytes, standin: StandIn
) -> None:
    standin.error = DeadlineExceeded("no result within 5 ms")
    outcomes = [
        outcome async for outcome in caller.detect_stream(iter([pb.DetectRequest(image=image)]))
    ]
    assert outcomes[0].error.status == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


async def test_an_empty_stream_ends_with_ok(caller: Caller) -> None:
    stream = caller.detect_stream(iter([]))
    assert [outcome async for outcome in stream] == []
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_client_that_cancels_its_stream_cancels_its_frames(
    caller: Caller, image: bytes, standin: StandIn
) -> None:
    standin.hold = asyncio.Event()
    stream = caller.detect_stream()
    await stream.write(pb.DetectRequest(image=image))
    await standin.started.wait()
    stream.cancel()
    labels = {"protocol": "grpc", "outcome": "cancelled"}
    registry = standin.metrics.registry
    while registry.get_sample_value("lite_detr_requests_total", labels) is None:
        await asyncio.sleep(0.01)
    assert standin.cancelled


async def test_a_drain_finishes_the_frames_that_were_read_and_ends_the_stream(
    caller: Caller, server: RpcServer, image: bytes, standin: StandIn
) -> None:
    standin.hold = asyncio.Event()
    stream = caller.detect_stream()
    await stream.write(pb.DetectRequest(image=image))
    await standin.started.wait()
    stopped = asyncio.create_task(server.stop(30))
    await asyncio.sleep(0)
    standin.hold.set()
    outcome = await stream.read()
    assert isinstance(outcome, pb.DetectOutcome)
    assert outcome.WhichOneof("outcome") == "response"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert trailing(caught.value)["lite-detr-code"] == "shutting_down"
    await stopped
