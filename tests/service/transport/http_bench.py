"""A running HTTP server with a small application, and raw connections to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from service.transport.http_server import HttpServer, listen
from tests.support.fake_service import fake_settings

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"


class Application:
    """Responds with "hello" when the test allows it."""

    def __init__(self) -> None:
        self.may_respond = asyncio.Event()
        self.may_respond.set()
        self.requests = 0
        self.over_limit: list[bool] = []
        self.scopes: list[dict[str, Any]] = []
        self.body = b"hello"
        self.reads_body = False

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.requests += 1
        self.scopes.append(scope)
        self.over_limit.append(scope["state"].get("over_connection_limit", False))
        while self.reads_body and (await receive()).get("more_body"):
            pass
        await self.may_respond.wait()
        headers = [(b"content-length", b"%d" % len(self.body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


class Client:
    """A TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def send_eof(self) -> None:
        self._writer.write_eof()

    async def drain(self) -> None:
        await self._writer.drain()

    def stop_reading(self) -> None:
        transport = self._writer.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()

    async def read_slowly(self) -> int:
        """Reads a few megabytes a second until the response is complete; returns the bytes read."""
        num_bytes = 0
        async with asyncio.timeout(60):
            while num_bytes < 24 << 20 and (chunk := await self._reader.read(1 << 16)):
                num_bytes += len(chunk)
                await asyncio.sleep(0.02)
        return num_bytes

    async def read_some(self, max_bytes: int) -> bytes:
        async with asyncio.timeout(120):
            return await self._reader.read(max_bytes)

    async def read_until_closed(self) -> bytes:
        async with asyncio.timeout(120):
            return await self._reader.read()

    async def read_response(self) -> bytes:
        async with asyncio.timeout(120):
            head = await self._reader.readuntil(b"\r\n\r\n")
            return head + await self._reader.readexactly(5)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


class Bench:
    """A server and its application."""

    def __init__(self, **overrides: Any) -> None:
        self.app = Application()
        self.server = HttpServer(self.app, fake_settings(**overrides), listen("127.0.0.1", 0))
        self.port = self.server.port

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))


@asynccontextmanager
async def serving(**overrides: Any) -> AsyncIterator[Bench]:
    bench = Bench(**overrides)
    task = asyncio.create_task(bench.server.run_until_drained())
    try:
        yield bench
    finally:
        bench.app.may_respond.set()
        bench.server.drain()
        await asyncio.wait_for(task, 120)
