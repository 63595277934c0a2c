from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.http_server import HttpServer, listen
from tests.service.fake_spine import fake_settings

Send = Callable[[dict[str, Any]], Awaitable[None]]
GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"


class Application:
    """Answers "hello" once the test lets it."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.requests = 0

    async def __call__(self, scope: dict[str, Any], receive: object, send: Send) -> None:
        self.requests += 1
        await self.may_answer.wait()
        headers = [(b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"hello"})


class Client:
    """A bare connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def read_until_closed(self) -> bytes:
        async with asyncio.timeout(20):
            return await self._reader.read()

    async def read_answer(self) -> bytes:
        async with asyncio.timeout(20):
            head = await self._reader.readuntil(b"\r\n\r\n")
            return head + await self._reader.readexactly(5)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


class Bench:
    def __init__(self, **overrides: Any) -> None:
        self.app = Application()
        self.server = HttpServer(self.app, fake_settings(**overrides), listen("127.0.0.1", 0))
        self.port = self.server.port

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))


@asynccontextmanager
async def _serving(**overrides: Any) -> AsyncIterator[Bench]:
    bench = Bench(**overrides)
    task = asyncio.create_task(bench.server.run_until_drained())
    try:
        yield bench
    finally:
        bench.app.may_answer.set()
        bench.server.drain()
        await asyncio.wait_for(task, 30)


async def test_requests_are_answered_on_one_connection() -> None:
    async with _serving() as bench:
        client = await bench.connect()
        for _ in range(3):
            client.send(GET)
            answer = await client.read_answer()
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"uvicorn" not in answer
        await client.close()


@pytest.mark.parametrize("trickle", [b"", b"GET / HTTP/1.1\r\nx-slow: ", b"\r\n"])
async def test_a_client_that_does_not_finish_its_head_is_let_go(trickle: bytes) -> None:
    async with _serving(header_timeout_seconds=0.2) as bench:
        client = await bench.connect()
        client.send(trickle)
        answer = await client.read_until_closed()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408")
        assert bench.app.requests == 0
        await client.close()


async def test_the_second_head_on_a_connection_is_watched_too() -> None:
    async with _serving(header_timeout_seconds=0.2) as bench:
        client = await bench.connect()
        client.send(GET)
        await client.read_answer()
        client.send(b"GET / HTTP/1.1\r\nx-slow: ")
        assert (await client.read_until_closed()).startswith(b"HTTP/1.1 408")
        await client.close()


async def test_a_request_that_takes_longer_than_a_head_may_is_not_cut() -> None:
    async with _serving(header_timeout_seconds=0.1) as bench:
        bench.app.may_answer.clear()
        client = await bench.connect()
        client.send(GET)
        await asyncio.sleep(0.4)
        bench.app.may_answer.set()
        assert (await client.read_answer()).startswith(b"HTTP/1.1 200")
        await client.close()


async def test_a_head_without_end_is_refused() -> None:
    async with _serving() as bench:
        client = await bench.connect()
        client.send(b"GET / HTTP/1.1\r\nx-filler: " + b"y" * (64 * 1024))
        assert (await client.read_until_closed()).startswith(b"HTTP/1.1 431")
        await client.close()


async def test_a_drain_answers_requests_under_way_and_closes_the_port() -> None:
    bench = Bench()
    task = asyncio.create_task(bench.server.run_until_drained())
    bench.app.may_answer.clear()
    clients = [await bench.connect() for _ in range(5)]
    for client in clients:
        client.send(GET)
    while bench.app.requests < 5:
        await asyncio.sleep(0.005)
    bench.server.drain()
    with pytest.raises(ConnectionRefusedError):
        while True:
            await (await bench.connect()).close()
            await asyncio.sleep(0.01)
    bench.app.may_answer.set()
    for client in clients:
        answer = await client.read_until_closed()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
        await client.close()
    await asyncio.wait_for(task, 20)


async def test_a_request_that_was_on_the_wire_when_the_port_closed_is_answered() -> None:
    bench = Bench()
    task = asyncio.create_task(bench.server.run_until_drained())
    idle, fresh = await bench.connect(), await bench.connect()
    idle.send(GET)
    await idle.read_answer()
    bench.server.drain()
    while not bench.server._door.closing:
        await asyncio.sleep(0.001)
    for client in (idle, fresh):
        client.send(GET)
        answer = await client.read_until_closed()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
        await client.close()
    await asyncio.wait_for(task, 20)


async def test_beyond_the_connection_limit_clients_are_turned_away() -> None:
    async with _serving(max_connections=2) as bench:
        clients = [await bench.connect() for _ in range(3)]
        for client in clients:
            client.send(GET)
        answers = [await client.read_answer() for client in clients[:2]]
        assert all(answer.startswith(b"HTTP/1.1 ") for answer in answers)
        assert (await clients[2].read_until_closed()).startswith(b"HTTP/1.1 503")
        for client in clients:
            await client.close()


def test_a_taken_port_is_told_at_once() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", first.getsockname()[1])
