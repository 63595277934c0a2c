from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from service.ipc.doorbell import EdgeDoorbell, EngineDoorbell
from service.ipc.messages import BadMessage, BatchDone, Message, RunBatch, Stop


async def test_messages_arrive_in_order_both_ways() -> None:
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


async def test_the_edge_can_send_after_the_engine_is_gone() -> None:
    ours, theirs = socket.socketpair()
    edge = await EdgeDoorbell.open(ours)
    theirs.sendall(b"\x02\x00")  # it died in the middle of a length
    theirs.close()
    assert await edge.receive() is None
    edge.send(Stop())
    edge.abort()
    edge.send(Stop())
    assert await edge.receive() is None


async def test_a_bad_message_from_the_engine_is_raised() -> None:
    ours, theirs = socket.socketpair()
    edge = await EdgeDoorbell.open(ours)
    theirs.sendall(b"\x02\x00\x00\x00hi")
    with pytest.raises(BadMessage):
        await edge.receive()
    edge.abort()
    theirs.close()


async def _listening(
    take: Callable[[Message], None],
) -> tuple[EdgeDoorbell, socket.socket, asyncio.Task[None]]:
    ours, theirs = socket.socketpair()
    edge = await EdgeDoorbell.open(ours)
    EngineDoorbell(theirs).send(_done(0))  # before `listen`
    task = asyncio.create_task(edge.listen(take))
    await asyncio.sleep(0)
    return edge, theirs, task


def _done(number: int) -> BatchDone:
    return BatchDone(number, 0.0, 1.0, 0.0)


async def test_listen_takes_every_message_until_the_engine_is_gone() -> None:
    heard: list[Message] = []
    _, theirs, task = await _listening(heard.append)
    for number in range(1, 20):
        EngineDoorbell(theirs).send(_done(number))
    theirs.close()
    await asyncio.wait_for(task, 120)
    assert heard == [_done(number) for number in range(20)]


async def test_an_error_of_take_ends_listen() -> None:
    heard: list[Message] = []

    def take(message: Message) -> None:
        heard.append(message)
        if message == _done(2):
            raise ValueError("not this one")

    edge, theirs, task = await _listening(take)
    for number in range(1, 5):
        EngineDoorbell(theirs).send(_done(number))
    with pytest.raises(ValueError, match="not this one"):
        await asyncio.wait_for(task, 120)
    assert heard == [_done(number) for number in range(3)]
    edge.abort()
    theirs.close()


async def test_a_bad_message_ends_listen() -> None:
    edge, theirs, task = await _listening(lambda _: None)
    theirs.sendall(b"\x02\x00\x00\x00hi")
    with pytest.raises(BadMessage):
        await asyncio.wait_for(task, 120)
    edge.abort()
    theirs.close()
