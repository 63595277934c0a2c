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

from service.errors import DeadlineExceeded, Overloaded
from service.settings import Settings
from service.transport.http_request import ClientGone, RequestRefused

_PROTECTED_SECONDS = 5.0  # a body gives way to others only after this time


@dataclass(frozen=True)
class BodyLimits:
    """How large a body may be and how slowly it may arrive."""

    max_bytes: int
    max_pause_s: float  # between two chunks
    min_bytes_per_s: int = 1  # on average over any time of `max_pause_s`
    max_s: float = math.inf  # for the whole body

    @classmethod
    def of(cls, settings: Settings) -> BodyLimits:
        """The limits in the settings."""
        return cls(
            settings.max_body_bytes,
            settings.body_timeout_seconds,
            settings.body_min_bytes_per_second,
            settings.body_max_seconds,
        )


class BodyMemory:
    """Counts the bytes of all bodies that are held at once, up to a maximum.

    Bodies are those of requests and of drawn images that are being sent (`CountedResponse`).

    When the maximum is reached, the body that has been arriving for the longest time gives way to
    new ones, unless it began only `_PROTECTED_SECONDS` ago. Otherwise a few slow clients could
    refuse everybody else.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts at zero bytes."""
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._clock = clock
        # Bodies that are arriving or being sent, in the order of their beginning.
        self._arriving: dict[int, tuple[float, BodyAccount, Callable[[], None]]] = {}

    def account(self) -> BodyAccount:
        """The bytes of one request; a context manager that releases them at its end."""
        return BodyAccount(self)

    def begin(self, account: BodyAccount, give_up: Callable[[], None]) -> None:
        """A body begins to arrive or to be sent; `give_up` is called if it must give way."""
        self._arriving[id(account)] = (self._clock(), account, give_up)

    def end(self, account: BodyAccount) -> None:
        """The body is complete, or nothing more of it is read or sent."""
        self._arriving.pop(id(account), None)

    def take(self, account: BodyAccount, num_bytes: int) -> None:
        """Adds received bytes.

        Raises:
            Overloaded: where the sum would exceed the maximum.
        """
        while self._held_bytes + num_bytes > self._max_bytes:
            if not self._evict_slowest(account):
                raise _no_memory()
        self._held_bytes += num_bytes

    def _evict_slowest(self, taker: BodyAccount) -> bool:
        """Frees the bytes of the body that has been on its way for the longest time.

        Returns:
            Whether there was one besides the taker's own.
        """
        for began, account, give_up in self._arriving.values():
            if self._clock() - began < _PROTECTED_SECONDS:
                break
            if account is taker or not account.held_bytes:
                continue
            self.end(account)
            account.release()
            give_up()
            return True
        return False

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
        self.release()

    def take(self, num_bytes: int) -> None:
        """Adds received bytes.

        Raises:
            Overloaded: where all requests together hold too many.
        """
        self.memory.take(self, num_bytes)
        self.held_bytes += num_bytes

    def release(self) -> None:
        """Releases all bytes."""
        self.memory.release(self.held_bytes)
        self.held_bytes = 0


async def read_body(
    headers: Mapping[str, str],
    receive: Receive,
    limits: BodyLimits,
    deadline: float | None,
    account: BodyAccount,
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
    deadline: float | None,
    account: BodyAccount,
) -> None:
    """Receives the body, chunk by chunk.

    Args:
        headers: of the request; a Content-Length that is too large is refused before reading.
        receive: the ASGI channel.
        limits: a body without a length is refused as soon as it exceeds them.
        take: called with each chunk that is not empty.
        deadline: of the request, time.monotonic seconds; None: only the limits apply.
        account: where the bytes are counted while the request lasts.

    Raises:
        Overloaded: when the bodies of all requests take too much memory.
        RequestRefused: for a body of more than `limits.max_bytes`, a Content-Length that is not a
            number, and a body that arrives too slowly.
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

            def give_up() -> None:
                timeouts.give_up()
                timer.reschedule(loop.time())

            account.memory.begin(account, give_up)
            while more:
                timer.reschedule(loop.time() + timeouts.for_next_chunk())
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk: bytes = message.get("body", b"")
                more = message.get("more_body", False)
                num_bytes += len(chunk)
                timeouts.received(len(chunk))
                if num_bytes > limits.max_bytes:
                    raise _too_large(limits)
                account.take(len(chunk))
                if chunk:
                    take(chunk)
    except TimeoutError:
        raise timeouts.error() from None
    finally:
        account.memory.end(account)


class _ChunkTimeouts:
    """How long to wait for the next chunk of a body.

    A body that arrives faster than the minimum rate earns time for later chunks, but never more
    than `max_pause_s`: so the rate holds over any time of that length.
    """

    def __init__(self, limits: BodyLimits, deadline: float | None) -> None:
        now = time.monotonic()
        self._limits = limits
        self._latest = now + limits.max_s
        self._due = now + limits.max_pause_s  # for the next chunk, by the minimum rate
        self._paused = self._due  # for the next chunk, by the maximum pause
        self._deadline = math.inf if deadline is None else deadline
        self._reason = ""
        self._gives_way = False

    def received(self, num_bytes: int) -> None:
        """A chunk has arrived."""
        limits = self._limits
        self._paused = time.monotonic() + limits.max_pause_s
        self._due = min(self._due + num_bytes / limits.min_bytes_per_s, self._paused)

    def give_up(self) -> None:
        """No more is to be read: other bodies need the memory."""
        self._gives_way = True

    def for_next_chunk(self) -> float:
        """Seconds to wait."""
        if self._gives_way:
            return 0.0
        end, self._reason = min(
            (self._deadline, "deadline"),
            (self._due, "rate" if self._due < self._paused else "pause"),
            (self._latest, "duration"),
        )
        return end - time.monotonic()

    def error(self) -> DeadlineExceeded | RequestRefused | Overloaded:
        """What to raise when the last wait timed out."""
        if self._gives_way:
            return _no_memory()
        if self._reason == "deadline":
            return DeadlineExceeded(
                "the deadline passed while the request's body was being received"
            )
        limits = self._limits
        reason = {
            "pause": f"paused for more than {limits.max_pause_s:g} s",
            "rate": f"arrived at less than {limits.min_bytes_per_s} bytes a second",
            "duration": f"took more than {limits.max_s:g} s",
        }[self._reason]
        return RequestRefused(408, "body_timeout", f"the request's body {reason}")


def _no_memory() -> Overloaded:
    return Overloaded(
        "the service holds as many bytes of requests as it can", retry_after_seconds=1
    )


def _content_length(headers: Mapping[str, str]) -> int | None:
    value = headers.get("content-length")
    if value is None:
        return None
    if not (value.isascii() and value.isdigit()):
        raise RequestRefused(
            400, "invalid_header", f"Content-Length is {value!r}, which is not a number of bytes"
        )
    return int(value)


def _too_large(limits: BodyLimits) -> RequestRefused:
    detail = f"the request's body is larger than the {limits.max_bytes} bytes accepted"
    return RequestRefused(413, "body_too_large", detail)
