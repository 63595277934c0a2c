"""The event loop of the load generators: sends scheduled requests on connections to one server.

    schedule --> waiting --> a free connection --> Exchange

Responses are stored unparsed; `report` and benchmarks/serving evaluate them.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import httptools

_GRACE_SECONDS = 10.0  # for requests in flight at the end


@dataclass(slots=True)
class Exchange:
    """One request and its response; times are `time.perf_counter` seconds."""

    image: int
    scheduled: float
    sent: float = 0.0  # 0: never
    done: float = 0.0
    status: int = 0  # 0: no response
    headers: dict[bytes, bytes] | None = None
    body: bytes = b""
    error: str = ""  # why there is no usable response, of protocols without HTTP statuses

    @property
    def latency_ms(self) -> float:
        """From the scheduled start to the response; only for requests with a response."""
        return (self.done - self.scheduled) * 1000

    @property
    def lag_ms(self) -> float:
        """From the scheduled start to sending; only for requests that were sent."""
        return (self.sent - self.scheduled) * 1000


class _Connection(asyncio.Protocol):
    """A keep-alive connection with at most one request in flight."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._exchange: Exchange | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._load.on_opened(self)
        self.transport = cast(asyncio.Transport, transport)  # uvloop's class is not a subclass
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            # Not HTTP, or no longer: the request has no response.
            assert self.transport is not None
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self._exchange = self._exchange, None
        self._load.on_closed(self, exchange)

    def send(self, exchange: Exchange, request: bytes) -> None:
        """Sends a request; `Load.on_response` gets the connection back."""
        assert self.transport is not None
        self._exchange = exchange
        exchange.sent = time.perf_counter()
        self.transport.write(request)

    def on_message_begin(self) -> None:
        self._headers, self._body = {}, []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < HTTPStatus.OK:  # interim: the response follows
            return
        exchange, self._exchange = self._exchange, None
        assert exchange is not None and self.transport is not None
        exchange.done = time.perf_counter()
        exchange.status = status
        exchange.headers, exchange.body = self._headers, b"".join(self._body)
        usable = self._parser.should_keep_alive()
        if not usable:
            self.transport.close()
        self._load.on_response(self, exchange, usable)


class Load:
    """Sends requests and collects the exchanges, on one event loop."""

    def __init__(
        self,
        port: int,
        requests: Sequence[bytes],
        connections: int,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Stores the arguments; opens no connection.

        Args:
            port: of the server.
            requests: complete HTTP requests, one per image; sent in this order, repeatedly.
            connections: maximum number of open connections.
            host: of the server.
            tls: for connections with TLS; None: without.
        """
        self._port, self._host, self._tls = port, host, tls
        self._connections: set[_Connection] = set()
        self._requests = requests
        self._max_connections = connections
        self._idle: list[_Connection] = []
        self._open = 0
        self._waiting: deque[Exchange] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._all_done = asyncio.Event()
        self._next_images: deque[int] | None = None  # closed loop only
        self._until = 0.0
        self.exchanges: list[Exchange] = []
        self._in_flight = 0

    async def open_connections(self, count: int) -> None:
        """Connects before the load, so that no latency includes a handshake."""
        await asyncio.gather(*(self._connect() for _ in range(min(count, self._max_connections))))

    def close(self) -> None:
        """Closes all connections; requests in flight get no response, waiting ones are dropped."""
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        for connection in list(self._connections):
            if connection.transport is not None:
                connection.transport.abort()

    def on_opened(self, connection: _Connection) -> None:
        """Takes a connection that is open now."""
        self._connections.add(connection)

    async def run_open(self, starts: Sequence[float]) -> None:
        """Sends one request at each of these times (seconds from now); waits for the responses."""
        begin = time.perf_counter()
        for number, start in enumerate(starts):
            wait = begin + start - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            self._submit(Exchange(number % len(self._requests), begin + start))
        await self._wait_for_responses()

    async def run_closed(self, in_flight: int, seconds: float) -> None:
        """Keeps `in_flight` requests in flight for `seconds`; waits for the responses."""
        self._until = time.perf_counter() + seconds
        self._next_images = deque(range(len(self._requests)))
        for _ in range(in_flight):
            self._submit_next()
        await self._wait_for_responses(seconds)

    def on_response(self, connection: _Connection, exchange: Exchange, usable: bool) -> None:
        """Reuses the connection of a completed exchange; in a closed loop, sends the next one."""
        self._in_flight -= 1
        if usable and self._waiting:
            waiting = self._waiting.popleft()
            connection.send(waiting, self._requests[waiting.image])
        elif usable:
            self._idle.append(connection)
        if self._next_images is not None and time.perf_counter() < self._until:
            self._submit_next()
        if not self._in_flight:
            self._all_done.set()

    def on_closed(self, connection: _Connection, exchange: Exchange | None) -> None:
        """Removes a closed connection; a request in flight on it has no response."""
        self._open -= 1
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if exchange is not None:
            self._in_flight -= 1
        if not self._in_flight:
            self._all_done.set()
        if self._waiting:
            self._start_connecting()

    def _submit_next(self) -> None:
        assert self._next_images is not None
        self._next_images.rotate(-1)
        self._submit(Exchange(self._next_images[-1], time.perf_counter()))

    def _submit(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self._in_flight += 1
        self._all_done.clear()
        if self._idle:
            self._idle.pop().send(exchange, self._requests[exchange.image])
            return
        self._waiting.append(exchange)
        self._start_connecting()

    def _start_connecting(self) -> None:
        if self._open < self._max_connections:
            task = asyncio.ensure_future(self._connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        self._open += 1
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self), self._host, self._port, ssl=self._tls
            )
        except OSError:
            self._open -= 1
            return
        if self._waiting:
            exchange = self._waiting.popleft()
            connection.send(exchange, self._requests[exchange.image])
        else:
            self._idle.append(connection)

    async def _wait_for_responses(self, seconds: float = 0.0) -> None:
        try:
            async with asyncio.timeout(seconds + _GRACE_SECONDS):
                await self._all_done.wait()
        except TimeoutError:
            return  # requests without a response count as failed


def schedule(rate: float, seconds: float, arrivals: str, seed: int) -> list[float]:
    """Scheduled starts in seconds from the beginning: evenly spaced, or a Poisson process."""
    if arrivals == "constant":
        return [number / rate for number in range(int(rate * seconds))]
    generator = random.Random(seed)
    starts, now = [], 0.0
    while (now := now + generator.expovariate(rate)) < seconds:
        starts.append(now)
    return starts


def post_request(
    path: str, body: bytes, headers: Mapping[str, str], host: str = "localhost"
) -> bytes:
    """Head and body of a POST request over HTTP/1.1."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body
