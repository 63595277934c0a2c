from __future__ import annotations

import asyncio
import socket

import pytest

from service.doorbell import EdgeDoorbell, EngineDoorbell
from service.messages import BadMessage, BatchDone, RunBatch, Stop


async def test_messages_cross_in_order_both_ways() -> None:
    ours, theirs = socket.socketpair()
    edge, engine = await EdgeDoorbell.open(ours), EngineDoorbell(theirs)
    batches = [RunBatch(number, (64, 64), ((number, 1),)) for number in range(20)]
    for batch in batches:
        edge.send(batch)
    assert [await asyncio.to_thread(engine.receive) for _ in batches] == batches
    for number in range(20):
        engine.send(BatchDone(number, 0.0, 1.0, 0.0))
    assert [(await edge.receive()) for _ in batches] == [
        BatchDone(number, 0.0, 1.0, 0.0) for number in range(20)
    ]
    edge.abort()
    assert await asyncio.to_thread(engine.receive) is None
    theirs.close()


async def test_the_edge_sees_the_engine_go_and_may_still_ring() -> None:
    ours, theirs = socket.socketpair()
    edge = await EdgeDoorbell.open(ours)
    theirs.sendall(b"\x02\x00")  # it died in the middle of a length
    theirs.close()
    assert await edge.receive() is None
    edge.send(Stop())
    edge.abort()
    edge.send(Stop())
    assert await edge.receive() is None


async def test_nonsense_from_the_engine_is_told() -> None:
    ours, theirs = socket.socketpair()
    edge = await EdgeDoorbell.open(ours)
    theirs.sendall(b"\x02\x00\x00\x00hi")
    with pytest.raises(BadMessage):
        await edge.receive()
    edge.abort()
    theirs.close()
