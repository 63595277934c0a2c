"""A load generator in a process of its own: cheap, open-loop, and it checks every answer.

    python -m benchmarks.serving.load --port 8000 --path /detect --rate 100 --seconds 10

Open loop (`--rate`): requests leave when the seeded schedule says so, however slow the answers
are; a request that finds every connection busy waits for one, and its latency counts from the
time when it was meant to leave. Closed loop (`--in-flight`): so many requests are always under
way, which is how the most throughput is found. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import cast

import httptools
import uvloop

from benchmarks.serving.dialects import DIALECTS, Dialect
from benchmarks.serving.photos import Photo, make_photos

_MOST_CONNECTIONS = 256
_GRACE_SECONDS = 10.0  # for what is still unanswered at the end
_OK = 200


@dataclass(frozen=True)
class Report:
    """What a run saw; latencies in milliseconds, of right answers alone."""

    seconds: float  # from the first intended start to the last answer
    sent: int
    right: int  # answers, each compared with what its own photo must give
    wrong: int  # 200 with another answer
    refused: int  # 429 and 503
    failed: int  # other statuses, broken connections, no answer at all
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    # From sending (this generator's timers are a millisecond late), less the answer's decode time.
    added_p50_ms: float | None
    load_cpu_seconds: float  # what this generator spent

    @property
    def goodput(self) -> float:
        """Right answers a second."""
        return self.right / self.seconds


@dataclass(slots=True)
class _Exchange:
    """One request and its answer; times are `time.perf_counter` seconds."""

    photo: int
    intended: float
    sent: float = 0.0
    done: float = 0.0
    status: int = 0
    headers: dict[bytes, bytes] | None = None
    body: bytes = b""


class _Connection(asyncio.Protocol):
    """A kept-alive connection that carries one request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._exchange: _Exchange | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._keep = True
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

    def ask(self, exchange: _Exchange, request: bytes) -> None:
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
            requests: whole HTTP requests, one a photo.
            connections: most that are opened.
        """
        self._port = port
        self._requests = requests
        self._most = connections
        self._idle: list[_Connection] = []
        self._open = 0
        self._waiting: deque[_Exchange] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._left = asyncio.Event()
        self._refill: deque[int] | None = None  # closed loop: photos still to be sent
        self._until = 0.0
        self.exchanges: list[_Exchange] = []
        self._unanswered = 0

    async def open_connections(self, count: int) -> None:
        """Connects beforehand, so that no latency holds a handshake."""
        await asyncio.gather(*(self._connect() for _ in range(min(count, self._most))))

    async def run_open(self, starts: Sequence[float]) -> None:
        """Sends one request at each of these seconds from now, and waits for the answers."""
        begin = time.perf_counter()
        for number, start in enumerate(starts):
            wait = begin + start - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            self._submit(_Exchange(number % len(self._requests), begin + start))
        await self._wait_for_answers()

    async def run_closed(self, in_flight: int, seconds: float) -> None:
        """Keeps so many requests under way for so long."""
        self._until = time.perf_counter() + seconds
        self._refill = deque(range(len(self._requests)))
        for _ in range(in_flight):
            self._submit_next()
        await self._wait_for_answers(seconds)

    def on_answer(self, connection: _Connection, exchange: _Exchange, usable: bool) -> None:
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

    def on_closed(self, connection: _Connection, exchange: _Exchange | None) -> None:
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
        self._submit(_Exchange(self._refill[-1], time.perf_counter()))

    def _submit(self, exchange: _Exchange) -> None:
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


def judge(
    exchanges: Sequence[_Exchange], photos: Sequence[Photo] | None, dialect: Dialect
) -> Report:
    """Compares each answer with what its own photo must give (None: takes any)."""
    counts = {"right": 0, "wrong": 0, "refused": 0, "failed": 0}
    latencies: list[float] = []
    added: list[float] = []
    for exchange in exchanges:
        photo = None if photos is None else photos[exchange.photo]
        verdict = _judge_one(exchange, photo, dialect)
        counts[verdict] += 1
        if verdict == "right":
            latencies.append((exchange.done - exchange.intended) * 1000)
            decode_ms = _decode_ms(exchange)
            if decode_ms is not None:
                added.append((exchange.done - exchange.sent) * 1000 - decode_ms)
    first = min((exchange.intended for exchange in exchanges), default=0.0)
    last = max((exchange.done for exchange in exchanges), default=first)
    return Report(
        seconds=max(last - first, 1e-9),
        sent=len(exchanges),
        **counts,
        p50_ms=_percentile(latencies, 0.50),
        p90_ms=_percentile(latencies, 0.90),
        p99_ms=_percentile(latencies, 0.99),
        max_ms=_percentile(latencies, 1.0),
        added_p50_ms=_percentile(added, 0.5) if added else None,
        load_cpu_seconds=time.process_time(),
    )


def _judge_one(exchange: _Exchange, photo: Photo | None, dialect: Dialect) -> str:
    if exchange.status in (429, 503):
        return "refused"
    if exchange.status != _OK:
        return "failed"
    try:
        found = dialect.read(exchange.headers or {}, exchange.body)
    except (ValueError, KeyError, TypeError, IndexError):
        return "wrong"
    return "right" if photo is None or found == photo.found else "wrong"


def _decode_ms(exchange: _Exchange) -> float | None:
    """What the answer says of its decoding, where it says so (this service does)."""
    timing = (exchange.headers or {}).get(b"server-timing", b"").decode()
    for stage in timing.split(", "):
        name, _, duration = stage.partition(";dur=")
        if name == "decode":
            return float(duration)
    return None


def _percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


async def _run(options: argparse.Namespace, requests: Sequence[bytes]) -> list[_Exchange]:
    load = Load(options.port, requests, options.connections)
    if options.in_flight:
        await load.open_connections(options.in_flight)
        await load.run_closed(options.in_flight, options.seconds)
    else:
        await load.open_connections(options.open_first)
        await load.run_open(schedule(options.rate, options.seconds, options.arrivals, options.seed))
    return load.exchanges


def main(arguments: Sequence[str]) -> int:
    """Runs one load and prints its report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--dialect", choices=sorted(DIALECTS), default="raw")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=0.0, help="open loop: requests a second")
    parser.add_argument("--in-flight", type=int, default=0, help="closed loop: requests at once")
    parser.add_argument("--arrivals", choices=("poisson", "constant"), default="poisson")
    parser.add_argument(
        "--unchecked", action="store_true", help="for a real model: any answer of 200 is right"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--connections", type=int, default=_MOST_CONNECTIONS)
    parser.add_argument("--open-first", type=int, default=32, help="connections made beforehand")
    options = parser.parse_args(arguments)
    if (options.rate > 0) == (options.in_flight > 0):
        parser.error("give either --rate or --in-flight")
    photos, dialect = make_photos(), DIALECTS[options.dialect]
    requests = [dialect.request(photo.data, options.path) for photo in photos]
    prepared = time.process_time()
    exchanges = uvloop.run(_run(options, requests))
    spent = time.process_time() - prepared
    report = judge(exchanges, None if options.unchecked else photos, dialect)
    print(json.dumps(asdict(report) | {"load_cpu_seconds": spent, "goodput": report.goodput}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
