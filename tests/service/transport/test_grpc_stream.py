"""DetectStream: order, back-pressure, errors of single frames, and how a stream ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from service.errors import DeadlineExceeded
from service.rpc.pb import detection_pb2 as pb
from service.rpc.server import RpcServer
from service.transport.grpc_stream import FramePump
from tests.service.rest.standin import StandIn
from tests.service.rpc.caller import Caller, trailing


async def _numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def test_outcomes_keep_the_order_of_their_frames() -> None:
    written: list[int] = []
    gates = [asyncio.Event() for _ in range(4)]

    async def answer(index: int, frame: int) -> int:
        await gates[index].wait()
        return frame * 10

    async def write(outcome: int) -> None:
        written.append(outcome)

    pump = FramePump(answer, write, in_flight=4)
    running = asyncio.create_task(pump.run(_numbers(4)))
    for gate in reversed(gates):
        await asyncio.sleep(0)
        assert written == []
        gate.set()
    await running
    assert written == [0, 10, 20, 30]


async def test_no_more_frames_are_read_than_are_allowed_in_flight() -> None:
    read: list[int] = []
    client_reads = asyncio.Semaphore(0)

    async def frames() -> AsyncIterator[int]:
        for number in range(10):
            read.append(number)
            yield number

    async def answer(index: int, frame: int) -> int:
        return frame

    async def write(outcome: int) -> None:
        await client_reads.acquire()

    pump = FramePump(answer, write, in_flight=3)
    running = asyncio.create_task(pump.run(frames()))
    for written in range(10):
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(read) == min(10, written + 3)
        client_reads.release()
    await running


async def test_a_pump_that_stops_reading_answers_what_it_read() -> None:
    written: list[int] = []
    answers = asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        yield 0
        yield 1
        await asyncio.Event().wait()

    async def answer(index: int, frame: int) -> int:
        await answers.wait()
        return frame

    async def write(outcome: int) -> None:
        written.append(outcome)

    pump = FramePump(answer, write, in_flight=4)
    running = asyncio.create_task(pump.run(endless()))
    for _ in range(5):
        await asyncio.sleep(0)
    pump.stop_reading()
    await asyncio.sleep(0)
    answers.set()
    await running
    assert written == [0, 1]


async def test_a_pump_that_stops_before_its_first_step_ends() -> None:
    async def answer(index: int, frame: int) -> int:
        return frame

    async def write(outcome: int) -> None:
        raise AssertionError(outcome)

    pump = FramePump(answer, write, in_flight=1)
    running = asyncio.create_task(pump.run(_numbers(3)))
    asyncio.get_running_loop().call_soon(pump.stop_reading)
    await running


async def test_a_cancelled_pump_leaves_no_task_behind() -> None:
    ended = 0

    async def answer(index: int, frame: int) -> int:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            ended += 1
        return frame

    async def write(outcome: int) -> None:
        raise AssertionError(outcome)

    running = asyncio.create_task(FramePump(answer, write, in_flight=2).run(_numbers(9)))
    for _ in range(5):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended == 2


async def test_a_frame_that_fails_does_not_end_its_stream(caller: Caller, photo: bytes) -> None:
    good = pb.DetectRequest(image=photo).SerializeToString()
    bad = pb.DetectRequest(image=photo[:90], request_id="bad").SerializeToString()
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


async def test_a_frame_past_its_deadline_is_told_in_the_stream(
    caller: Caller, photo: bytes, standin: StandIn
) -> None:
    standin.error = DeadlineExceeded("no answer within 5 ms")
    outcomes = [
        outcome async for outcome in caller.detect_stream(iter([pb.DetectRequest(image=photo)]))
    ]
    assert outcomes[0].error.status == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


async def test_an_empty_stream_ends_well(caller: Caller) -> None:
    stream = caller.detect_stream(iter([]))
    assert [outcome async for outcome in stream] == []
    assert await stream.code() is grpc.StatusCode.OK


async def test_a_client_that_leaves_its_stream_cancels_its_frames(
    caller: Caller, photo: bytes, standin: StandIn
) -> None:
    standin.hold = asyncio.Event()
    stream = caller.detect_stream()
    await stream.write(pb.DetectRequest(image=photo))
    await standin.started.wait()
    stream.cancel()
    labels = {"protocol": "grpc", "outcome": "cancelled"}
    registry = standin.metrics.registry
    while registry.get_sample_value("lite_detr_requests_total", labels) is None:
        await asyncio.sleep(0.01)
    assert standin.cancelled


async def test_a_drain_answers_the_frames_it_took_and_ends_the_stream(
    caller: Caller, server: RpcServer, photo: bytes, standin: StandIn
) -> None:
    standin.hold = asyncio.Event()
    stream = caller.detect_stream()
    await stream.write(pb.DetectRequest(image=photo))
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
