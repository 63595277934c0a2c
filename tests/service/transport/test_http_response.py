"""Large responses: sent in parts, counted until they are read, and given up for others."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from service.errors import Overloaded
from service.transport.http_body import BodyMemory
from service.transport.http_request import ClientGone
from service.transport.http_response import CountedResponse
from tests.service.transport.http_bench import GET, serving

SIZE = 32 << 20  # more than the buffers of both ends of a connection
CONTENT = bytes(range(256)) * (SIZE // 256)


class Memory(BodyMemory):
    """With a clock that the test moves."""

    def __init__(self, max_bytes: int = SIZE) -> None:
        self.now = 0.0
        super().__init__(max_bytes, lambda: self.now)

    def is_full(self) -> bool:
        """Whether not even one byte is left, now and if nothing gives way."""
        with self.account() as account:
            try:
                account.take(1)
            except Overloaded:
                return True
        return False

    def response(self, content: bytes) -> CountedResponse:
        account = self.account()
        account.take(len(content))
        return CountedResponse(content, "image/png", account)


@pytest.mark.parametrize("size", [0, 1, 1 << 16, (1 << 16) + 1, 200_000])
async def test_a_response_is_complete_and_counted_until_its_last_part(size: int) -> None:
    memory, sent = Memory(max(1, size)), []

    async def send(message: Any) -> None:
        sent.append(message)
        assert memory.is_full() is bool(size)

    await memory.response(CONTENT[:size])({"type": "http"}, None, send)  # type: ignore[arg-type]
    start, *parts = sent
    assert (b"content-length", b"%d" % size) in start["headers"]
    assert b"".join(part["body"] for part in parts) == CONTENT[:size]
    assert [part["more_body"] for part in parts] == [True] * (len(parts) - 1) + [False]
    assert max(len(part["body"]) for part in parts) <= 1 << 16
    assert not memory.is_full()


@pytest.mark.parametrize("error", [OSError, asyncio.CancelledError])
async def test_a_response_that_cannot_be_sent_is_no_longer_counted(
    error: type[BaseException],
) -> None:
    async def send(_message: object) -> None:
        raise error

    memory = Memory()
    with pytest.raises(error):
        await memory.response(CONTENT)({"type": "http"}, None, send)  # type: ignore[arg-type]
    assert not memory.is_full()


async def test_a_response_on_another_server_gives_way_to_others() -> None:
    memory = Memory()

    async def send(_message: object) -> None:
        memory.now += 6
        memory.account().take(1)

    with pytest.raises(ClientGone):
        await memory.response(CONTENT)({"type": "http"}, None, send)  # type: ignore[arg-type]


async def test_a_response_is_counted_while_its_client_does_not_read() -> None:
    memory = Memory()
    async with serving() as bench:
        bench.server.config.app = _responding(memory)
        client = await bench.connect()
        client.stop_reading()
        client.send(GET)
        while not memory.is_full():
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.2)
        assert memory.is_full()  # the kernel and the transport have taken what they can
        await client.close()
        while memory.is_full():
            await asyncio.sleep(0.005)


async def test_a_client_that_does_not_read_is_disconnected_when_others_need_the_memory() -> None:
    memory = Memory()
    async with serving() as bench:
        bench.server.config.app = _responding(memory)
        client = await bench.connect()
        client.stop_reading()
        client.send(GET)
        while not memory.is_full():
            await asyncio.sleep(0.005)
        memory.now += 6
        with memory.account() as other:
            other.take(SIZE)
        while bench.server.server_state.connections:
            await asyncio.sleep(0.005)
        await client.close()


async def test_a_client_that_reads_gets_the_whole_response() -> None:
    memory = Memory()
    async with serving() as bench:
        bench.server.config.app = _responding(memory)
        client = await bench.connect()
        client.send(GET.replace(b"host", b"connection: close\r\nhost"))
        _, _, body = (await client.read_until_closed()).partition(b"\r\n\r\n")
        assert body == CONTENT
        assert not memory.is_full()
        await client.close()


async def test_a_client_that_trickles_is_disconnected_after_the_longest_time() -> None:
    async with serving(send_timeout_seconds=60, send_max_seconds=0.3) as bench:
        bench.app.body = CONTENT
        client = await bench.connect()
        client.send(GET)
        num_bytes = 0
        with contextlib.suppress(ConnectionError):
            while chunk := await client.read_some(1024):
                num_bytes += len(chunk)
                await asyncio.sleep(0.01)
        assert num_bytes < SIZE
        await client.close()


async def test_a_connection_lasts_longer_than_one_response_may_take() -> None:
    async with serving(send_timeout_seconds=60, send_max_seconds=0.1) as bench:
        client = await bench.connect()
        for _ in range(5):
            client.send(GET)
            assert (await client.read_response()).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.1)
        await client.close()


def _responding(memory: Memory) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(ClientGone):
            await memory.response(CONTENT)(scope, receive, send)

    return app
