"""Clients of a running service that check each result and record each outcome."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np

from model.images.decode import ImageLimits, decode_image
from service.rpc.pb import detection_pb2 as pb
from tests.service.rpc.caller import Caller
from tests.support.fake_device import FAKE_MODEL, fake_detections
from tests.support.images import solid_png

Colour = tuple[int, int, int]

# Images of one colour are cheap to resize, and resizing keeps the colour, which sets the result.
WIDTH, HEIGHT = 96, 4


@lru_cache(maxsize=4096)
def image(colour: Colour) -> bytes:
    return solid_png(colour, WIDTH, HEIGHT)


@lru_cache(maxsize=4096)
def expected_detections(colour: Colour) -> list[tuple[str, list[float]]]:
    """Label and box of each detection of the fake device."""
    decoded = decode_image(image(colour), FAKE_MODEL.config, ImageLimits(10**9, 10**9))
    found = fake_detections(decoded.pixels, decoded.original_size)
    names = [FAKE_MODEL.labels[label] for label in found.labels]
    return list(zip(names, found.boxes_xyxy.tolist(), strict=True))


def _is_correct(colour: Colour, found: list[tuple[str, list[float]]]) -> bool:
    wanted = expected_detections(colour)
    return [name for name, _ in found] == [name for name, _ in wanted] and np.allclose(
        [box for _, box in found], [box for _, box in wanted], atol=0.02
    )


def random_colours(seed: int) -> Callable[[], Colour]:
    """Colours without a fault (those of the tests have blue below 16)."""
    rng = random.Random(seed)
    return lambda: (rng.randrange(256), rng.randrange(256), rng.randrange(16, 256))


@dataclass(frozen=True)
class Reply:
    """The outcome of one request."""

    outcome: str  # "ok", "wrong", "refused", "lost", or the status of an error
    sent_at: float  # monotonic seconds
    seconds: float
    version: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def count(replies: list[Reply]) -> Counter[str]:
    return Counter(reply.outcome for reply in replies)


class HttpClient:
    """One keep-alive connection; reconnects if the service closed it."""

    def __init__(self, url: str, *, keep_alive: bool = True) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        self._keep_alive = keep_alive
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def detect(self, colour: Colour, **headers: str) -> Reply:
        """Sends an image of one colour and checks the result."""
        began = time.monotonic()
        try:
            reader, writer = await self._connect()
        except OSError:
            return Reply("refused", began, time.monotonic() - began)
        sent_at = time.monotonic()
        try:
            writer.write(self._request(image(colour), headers))
            status, response_headers, body = await _read_response(reader)
        except (OSError, EOFError):
            self._drop()
            return Reply("lost", sent_at, time.monotonic() - sent_at)
        except asyncio.CancelledError:
            self._drop()
            raise
        if not self._keep_alive or response_headers.get("connection") == "close":
            self._drop()
        seconds = time.monotonic() - sent_at
        if status != 200:
            return Reply(str(status), sent_at, seconds, "", response_headers, body)
        result = json.loads(body)
        found = [(one["label"], _corners(one["box"])) for one in result["detections"]]
        outcome = "ok" if _is_correct(colour, found) else "wrong"
        version = result["model"]["version"]
        return Reply(outcome, sent_at, seconds, version, response_headers, body)

    def close(self) -> None:
        self._drop()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None or self._reader.at_eof():
            self._drop()
            self._reader, self._writer = await asyncio.open_connection(*self._address)
        return self._reader, self._writer

    def _request(self, data: bytes, headers: dict[str, str]) -> bytes:
        lines = ["POST /detect?threshold=0 HTTP/1.1", "Host: service", "Content-Type: image/png"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(data)}", "", ""]
        return "\r\n".join(lines).encode() + data

    def _drop(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None


def _corners(box: dict[str, float]) -> list[float]:
    return [box["xmin"], box["ymin"], box["xmax"], box["ymax"]]


async def _read_response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.split(": ", 1) for line in head[1:] if line)
    headers = {name.lower(): value for name, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return int(head[0].split()[1]), headers, body


class GrpcClient:
    """A channel; `detect` makes a unary call, `stream` one call for many images."""

    def __init__(self, address: str) -> None:
        # Each client has its own connection.
        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
        self.channel = grpc.aio.insecure_channel(address, options)
        self._caller = Caller(self.channel)

    async def detect(
        self, colour: Colour, timeout: float = 60, metadata: tuple[tuple[str, str], ...] = ()
    ) -> Reply:
        began = time.monotonic()
        call = self._caller.detect(_message(colour), timeout=timeout, metadata=metadata)
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            return Reply(_outcome_of(error), began, time.monotonic() - began)
        return self._reply(colour, response, began)

    async def stream(self, colours: list[Colour], pause: float = 0.0) -> list[Reply]:
        """Returns replies in order, without those that were missing when the stream ended."""
        began = time.monotonic()
        replies: list[Reply] = []

        async def frames() -> Any:
            for colour in colours:
                yield _message(colour)
                await asyncio.sleep(pause)

        with contextlib.suppress(grpc.aio.AioRpcError):
            async for outcome in self._caller.detect_stream(frames(), timeout=60):
                colour = colours[len(replies)]
                if outcome.HasField("error"):
                    replies.append(Reply(outcome.error.code, began, time.monotonic() - began))
                else:
                    replies.append(self._reply(colour, outcome.response, began))
        return replies

    async def close(self) -> None:
        await self.channel.close()

    def _reply(self, colour: Colour, response: pb.DetectResponse, began: float) -> Reply:
        found = [
            (one.label, [one.box.xmin, one.box.ymin, one.box.xmax, one.box.ymax])
            for one in response.detections
        ]
        outcome = "ok" if _is_correct(colour, found) else "wrong"
        return Reply(outcome, began, time.monotonic() - began)


def _message(colour: Colour) -> pb.DetectRequest:
    options = pb.DetectOptions(threshold=0.0)
    return pb.DetectRequest(image=image(colour), options=options)


def _outcome_of(error: grpc.aio.AioRpcError) -> str:
    """The status name, or "refused" for a connection that was refused."""
    details = error.details() or ""
    if error.code() is grpc.StatusCode.UNAVAILABLE and "failed to connect" in details.lower():
        return "refused"
    return error.code().name


class Flood:
    """Workers that send one request after another until `stop`."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._seeds = itertools.count()

    def add_http(self, url: str, workers: int, *, keep_alive: bool = True, **headers: str) -> None:
        for _ in range(workers):
            client = HttpClient(url, keep_alive=keep_alive)
            self._start(lambda c, client=client: client.detect(c, **headers), client.close)

    def add_grpc(self, address: str, workers: int) -> None:
        for _ in range(workers):
            client = GrpcClient(address)
            self._start(client.detect, client.close)

    def _start(self, detect: Callable[..., Any], close: Callable[[], Any]) -> None:
        colour = random_colours(next(self._seeds))

        async def work() -> None:
            while not self._stop.is_set():
                reply = await detect(colour())
                self.replies.append(reply)
                if reply.outcome == "refused":
                    break
                if reply.outcome != "ok":
                    await asyncio.sleep(0.02)
            closed = close()
            if closed is not None:
                await closed

        self._tasks.append(asyncio.create_task(work()))

    async def until(self, holds: Callable[[], bool], timeout_seconds: float = 300) -> None:
        async with asyncio.timeout(timeout_seconds):
            while not holds():
                await asyncio.sleep(0.01)

    async def wait_for_results(self, more: int) -> None:
        """Waits for so many more correct results."""
        wanted = count(self.replies)["ok"] + more
        await self.until(lambda: count(self.replies)["ok"] >= wanted)

    async def stop(self) -> Counter[str]:
        self._stop.set()
        await asyncio.gather(*self._tasks)
        return count(self.replies)

    async def ended(self) -> Counter[str]:
        """Waits until the service refuses all connections."""
        await asyncio.gather(*self._tasks)
        return count(self.replies)
