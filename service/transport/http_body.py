"""Receives an HTTP body within limits of size, time and memory.

client --body, chunk by chunk--> receive_body --> adapter
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from starlette.types import Receive

from service.errors import DeadlineExceeded, ImageTooLarge, Overloaded
from service.settings import Settings
from service.transport.http_request import ClientGone, RequestRefused


@dataclass(frozen=True)
class BodyLimits:
    """How large a body may be and how slowly it may arrive."""

    max_bytes: int
    max_pause_s: float  # between two chunks
    min_bytes_per_s: int = 1  # on average, after the first `max_pause_s`

    @classmethod
    def of(cls, settings: Settings) -> BodyLimits:
        """The limits in the settings."""
        return cls(
            settings.max_body_bytes,
            settings.body_timeout_seconds,
            settings.body_min_bytes_per_second,
        )


class BodyMemory:
    """Counts the bytes of all bodies that are held at once, up to a maximum."""

    def __init__(self, max_bytes: int) -> None:
        """Starts at zero bytes."""
        self._max_bytes = max_bytes
        self._held_bytes = 0

    def account(self) -> BodyAccount:
        """The bytes of one request; a context manager that releases them at its end."""
        return BodyAccount(self)

    def take(self, num_bytes: int) -> None:
        """Adds received bytes.

        Raises:
            Overloaded: where the sum would exceed the maximum.
        """
        if self._held_bytes + num_bytes > self._max_bytes:
            raise Overloaded(
                "the service holds as many bytes of requests as it can", retry_after_seconds=1
            )
        self._held_bytes += num_bytes

    def release(self, num_bytes: int) -> None:
        """Subtracts bytes that are no longer held."""
        self._held_bytes -= num_bytes


@dataclass(slots=True)
class BodyAccount:
    """The bytes that one request holds."""

    memory: BodyMemory
    held_bytes: int = 0

    def __enter__(self) -> Self:
        """Starts at zero bytes."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Releases all bytes."""
        self.memory.release(self.held_bytes)

    def take(self, num_bytes: int) -> None:
        """Adds received bytes.

        Raises:
            Overloaded: where all requests together hold too many.
        """
        self.memory.take(num_bytes)
        self.held_bytes += num_bytes


async def read_body(
    headers: Mapping[str, str],
    receive: Receive,
    limits: BodyLimits,
    deadline: float | None = None,
    account: BodyAccount | None = None,
) -> bytes:
    """Returns the whole body; arguments and errors as for `receive_body`."""
    chunks: list[bytes] = []
    await receive_body(headers, receive, limits, chunks.append, deadline, account)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def receive_body(  # noqa: PLR0913, PLR0917 - a request's head, body and limits
    headers: Mapping[str, str],
    receive: Receive,
    limits: BodyLimits,
    take: Callable[[bytes], object],
    deadline: float | None = None,
    account: BodyAccount | None = None,
) -> None:
    """Receives the body, chunk by chunk.

    Args:
        headers: of the request; a Content-Length that is too large is refused before reading.
        receive: the ASGI channel.
        limits: a body without a length is refused as soon as it exceeds them.
        take: called with each chunk that is not empty.
        deadline: of the request, time.monotonic seconds.
        account: where the bytes are counted while the request lasts.

    Raises:
        ImageTooLarge: for a body of more than `limits.max_bytes`.
        Overloaded: when the bodies of all requests take too much memory.
        RequestRefused: for a Content-Length that is not a number, and a body that arrives too
            slowly.
        DeadlineExceeded: when the deadline passes before the body is complete.
        ClientGone: when the client disconnects before the body is complete.
    """
    announced = _content_length(headers)
    if announced is not None and announced > limits.max_bytes:
        raise _too_large(limits)
    num_bytes, more = 0, True
    timeouts, loop = _ChunkTimeouts(limits, deadline), asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as timer:
            while more:
                timer.reschedule(loop.time() + timeouts.for_chunk_after(num_bytes))
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk: bytes = message.get("body", b"")
                more = message.get("more_body", False)
                num_bytes += len(chunk)
                if num_bytes > limits.max_bytes:
                    raise _too_large(limits)
                if account is not None:
                    account.take(len(chunk))
                if chunk:
                    take(chunk)
    except TimeoutError:
        raise timeouts.error() from None


class _ChunkTimeouts:
    """How long to wait for the next chunk of a body."""

    def __init__(self, limits: BodyLimits, deadline: float | None) -> None:
        self._limits = limits
        self._started = time.monotonic()
        self._deadline = math.inf if deadline is None else deadline
        self._reason = ""

    def for_chunk_after(self, num_bytes: int) -> float:
        """Seconds to wait after `num_bytes` have been received."""
        limits, now = self._limits, time.monotonic()
        due = self._started + limits.max_pause_s + num_bytes / limits.min_bytes_per_s
        seconds, self._reason = min(
            (self._deadline - now, "deadline"), (limits.max_pause_s, "pause"), (due - now, "rate")
        )
        return seconds

    def error(self) -> DeadlineExceeded | RequestRefused:
        """What to raise when the last wait timed out."""
        if self._reason == "deadline":
            return DeadlineExceeded(
                "the deadline passed while the request's body was being received"
            )
        reason = (
            f"paused for more than {self._limits.max_pause_s:g} s"
            if self._reason == "pause"
            else f"arrived at less than {self._limits.min_bytes_per_s} bytes a second"
        )
        return RequestRefused(408, "body_timeout", f"the request's body {reason}")


def _content_length(headers: Mapping[str, str]) -> int | None:
    value = headers.get("content-length")
    if value is None:
        return None
    if not (value.isascii() and value.isdigit()):
        raise RequestRefused(
            400, "invalid_header", f"Content-Length is {value!r}, which is not a number of bytes"
        )
    return int(value)


def _too_large(limits: BodyLimits) -> ImageTooLarge:
    return ImageTooLarge(f"the request's body is larger than the {limits.max_bytes} bytes accepted")
