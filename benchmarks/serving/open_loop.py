"""Open-loop arrivals at a running service: requests come when they come, however slow it is.

A closed loop of clients waits for a slow service and so hides what it does to those who do not
wait. Here arrivals are a Poisson process; each request has a connection of a pool to itself.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Outcome:
    """One request as its client saw it."""

    status: int  # 0: no answer
    seconds: float  # from its arrival to its answer
    lag: float  # of those, from its arrival until this generator had sent it


class OpenLoop:
    """Sends one image again and again."""

    def __init__(self, url: str, image: bytes, timeout_ms: float) -> None:
        """Prepares the request.

        Args:
            url: of the service.
            image: a PNG file.
            timeout_ms: what the client gives the service, `X-Request-Timeout-Ms`.
        """
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        head = [
            "POST /detect HTTP/1.1",
            "Host: benchmark",
            "Content-Type: image/png",
            f"X-Request-Timeout-Ms: {timeout_ms:g}",
            f"Content-Length: {len(image)}",
        ]
        self._request = "\r\n".join([*head, "", ""]).encode() + image
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.outcomes: list[Outcome] = []

    async def run(self, rate: float, seconds: float, seed: int = 7) -> list[Outcome]:
        """Lets requests arrive at a mean rate for so long, and waits for the last answer."""
        rng, tasks = random.Random(seed), []
        arrival, end = time.monotonic(), time.monotonic() + seconds
        while arrival < end:
            await asyncio.sleep(max(0.0, arrival - time.monotonic()))
            tasks.append(asyncio.create_task(self._call(arrival)))
            arrival += rng.expovariate(rate)
        await asyncio.gather(*tasks)
        for _, writer in self._idle:
            writer.close()
        return self.outcomes

    async def _call(self, arrival: float) -> None:
        status, lag = 0, 0.0
        try:
            reader, writer = await self._connection()
            writer.write(self._request)
            lag = time.monotonic() - arrival
            status = await self._read_status(reader)
            self._idle.append((reader, writer))
        except (OSError, EOFError):
            status = 0
        self.outcomes.append(Outcome(status, time.monotonic() - arrival, lag))

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
        return await asyncio.open_connection(*self._address)

    async def _read_status(self, reader: asyncio.StreamReader) -> int:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        return int(head[9:12])
