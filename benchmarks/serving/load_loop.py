"""The load generators' own loop: connections to one server, and requests on them by a schedule.

    schedule --> waiting --> a free connection --> Exchange

Each answer is kept as it came; `benchmarks.serving.load` and `.overload` say what it is worth.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import httptools

_GRACE_SECONDS = 10.0  # for what is still unanswered at the end


@dataclass(slots=True)
class Exchange:
    """One request and its answer; times are `time.perf_counter` seconds."""

    photo: int
    intended: float
    sent: float = 0.0  # 0: never
    done: float = 0.0
    status: int = 0  # 0: no answer
    headers: dict[bytes, bytes] | None = None
    body: bytes = b""

    @property
    def latency_ms(self) -> float:
        """From the intended start to the answer, which there must be."""
        return (self.done - self.intended) * 1000

    @property
    def lag_ms(self) -> float:
        """From the intended start until the request, which there must be, was sent."""
        return (self.sent - self.intended) * 1000


class _Connection(asyncio.Protocol):
    """A kept-alive connection that carries one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._exchange: Exchange | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are not of its class
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self._exchange = self._exchange, None
        self._load.on_closed(self, exchange)

    def ask(self, exchange: Exchange, request: bytes) -> None:
        """Sends a request; `Load.on_answer` gets the connection back."""
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
        exchange, self._exchange = self._exchange, None
        assert exchange is not None and self.transport is not None
        exchange.done = time.perf_counter()
        exchange.status = self._parser.get_status_code()
        exchange.headers, exchange.body = self._headers, b"".join(self._body)
        usable = self._parser.should_keep_alive()
        if not usable:
            self.transport.close()
        self._load.on_answer(self, exchange, usable)


class Load:
    """Requests and their answers, on one event loop."""

    def __init__(self, port: int, requests: Sequence[bytes], connections: int) -> None:
        """Prepares.

        Args:
            port: of the server, on 127.0.0.1.
            requests: whole HTTP requests, one a photo; sent in turns.
            connections: most that are opened.
        """
        self._port = port
        self._requests = requests
        self._most = connections
        self._idle: list[_Connection] = []
        self._open = 0
        self._waiting: deque[Exchange] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._left = asyncio.Event()
        self._refill: deque[int] | None = None  # closed loop: photos still to be sent
        self._until = 0.0
        self.exchanges: list[Exchange] = []
        self._unanswered = 0

    async def open_connections(self, count: int) -> None:
        """Connects beforehand, so that no latency holds a handshake."""
        await asyncio.gather(*(self._connect() for _ in range(min(count, self._most))))

    def close(self) -> None:
        """Closes the connections that carry nothing."""
        for connection in self._idle:
            assert connection.transport is not None
            connection.transport.close()

    async def run_open(self, starts: Sequence[float]) -> None:
        """Sends one request at each of these seconds from now, and waits for the answers."""
        begin = time.perf_counter()
        for number, start in enumerate(starts):
            wait = begin + start - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            self._submit(Exchange(number % len(self._requests), begin + start))
        await self._wait_for_answers()

    async def run_closed(self, in_flight: int, seconds: float) -> None:
        """Keeps so many requests under way for so long."""
        self._until = time.perf_counter() + seconds
        self._refill = deque(range(len(self._requests)))
        for _ in range(in_flight):
            self._submit_next()
        await self._wait_for_answers(seconds)

    def on_answer(self, connection: _Connection, exchange: Exchange, usable: bool) -> None:
        """Takes the answer to a request; its connection is free again."""
        self._unanswered -= 1
        if usable and self._waiting:
            waiting = self._waiting.popleft()
            connection.ask(waiting, self._requests[waiting.photo])
        elif usable:
            self._idle.append(connection)
        if self._refill is not None and time.perf_counter() < self._until:
            self._submit_next()
        if not self._unanswered:
            self._left.set()

    def on_closed(self, connection: _Connection, exchange: Exchange | None) -> None:
        """A connection is gone; a request on it has no answer."""
        self._open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        if exchange is not None:
            self._unanswered -= 1
        if not self._unanswered:
            self._left.set()
        if self._waiting:
            self._start_connecting()

    def _submit_next(self) -> None:
        assert self._refill is not None
        self._refill.rotate(-1)
        self._submit(Exchange(self._refill[-1], time.perf_counter()))

    def _submit(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self._unanswered += 1
        self._left.clear()
        if self._idle:
            self._idle.pop().ask(exchange, self._requests[exchange.photo])
            return
        self._waiting.append(exchange)
        self._start_connecting()

    def _start_connecting(self) -> None:
        if self._open < self._most:
            task = asyncio.ensure_future(self._connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        self._open += 1
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(self), "127.0.0.1", self._port
            )
        except OSError:
            self._open -= 1
            return
        if self._waiting:
            exchange = self._waiting.popleft()
            connection.ask(exchange, self._requests[exchange.photo])
        else:
            self._idle.append(connection)

    async def _wait_for_answers(self, seconds: float = 0.0) -> None:
        try:
            async with asyncio.timeout(seconds + _GRACE_SECONDS):
                await self._left.wait()
        except TimeoutError:
            return  # whoever has no answer by now counts as failed


def schedule(rate: float, seconds: float, arrivals: str, seed: int) -> list[float]:
    """Intended starts, seconds from the beginning: evenly spaced or a Poisson process."""
    if arrivals == "constant":
        return [number / rate for number in range(int(rate * seconds))]
    chance = random.Random(seed)
    starts, now = [], 0.0
    while (now := now + chance.expovariate(rate)) < seconds:
        starts.append(now)
    return starts
