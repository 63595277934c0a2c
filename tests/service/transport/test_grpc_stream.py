"""FramePump: order, back-pressure, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from service.transport.grpc_stream import FramePump


async def _numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def test_outcomes_keep_the_order_of_their_frames() -> None:
    written: list[int] = []
    gates = [asyncio.Event() for _ in range(4)]

    async def process(index: int, frame: int) -> int:
        await gates[index].wait()
        return frame * 10

    async def write(outcome: int) -> None:
        written.append(outcome)

    pump = FramePump(process, write, in_flight=4)
    running = asyncio.create_task(pump.run(_numbers(4)))
    for gate in reversed(gates):
        await asyncio.sleep(0)
        assert written == []
        gate.set()
    await running
    assert written == [0, 10, 20, 30]


async def test_frames_in_flight_are_limited() -> None:
    read: list[int] = []
    client_reads = asyncio.Semaphore(0)

    async def frames() -> AsyncIterator[int]:
        for number in range(10):
            read.append(number)
            yield number

    async def process(index: int, frame: int) -> int:
        return frame

    async def write(outcome: int) -> None:
        await client_reads.acquire()

    pump = FramePump(process, write, in_flight=3)
    running = asyncio.create_task(pump.run(frames()))
    for written in range(10):
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(read) == min(10, written + 3)
        client_reads.release()
    await running


async def test_a_pump_that_stops_reading_finishes_the_frames_that_were_read() -> None:
    written: list[int] = []
    release = asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        yield 0
        yield 1
        await asyncio.Event().wait()

    async def process(index: int, frame: int) -> int:
        await release.wait()
        return frame

    async def write(outcome: int) -> None:
        written.append(outcome)

    pump = FramePump(process, write, in_flight=4)
    running = asyncio.create_task(pump.run(endless()))
    for _ in range(5):
        await asyncio.sleep(0)
    pump.stop_reading()
    await asyncio.sleep(0)
    release.set()
    await running
    assert written == [0, 1]


async def test_a_pump_that_stops_before_its_first_step_ends() -> None:
    async def process(index: int, frame: int) -> int:
        return frame

    async def write(outcome: int) -> None:
        raise AssertionError(outcome)

    pump = FramePump(process, write, in_flight=1)
    running = asyncio.create_task(pump.run(_numbers(3)))
    asyncio.get_running_loop().call_soon(pump.stop_reading)
    await running


async def test_a_cancelled_pump_leaves_no_task_behind() -> None:
    ended = 0

    async def process(index: int, frame: int) -> int:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            ended += 1
        return frame

    async def write(outcome: int) -> None:
        raise AssertionError(outcome)

    running = asyncio.create_task(FramePump(process, write, in_flight=2).run(_numbers(9)))
    for _ in range(5):
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended == 2
