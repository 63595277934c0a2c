"""What the HTTP adapters share of a request: its body within limits, its deadline, its client.

    client --body, chunk by chunk--> stream_body --> adapter --work--> unless_client_leaves

`RequestRefused` and `ClientGone` are the faults of the exchange itself; what is wrong with an
image or an option is a `DetectionError` as everywhere.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.types import Message, Receive

from service.errors import DeadlineExceeded, ImageTooLarge, InvalidOptions, Overloaded
from service.settings import Settings

TIMEOUT_HEADER = "X-Request-Timeout-Ms"

_Answer = TypeVar("_Answer")


class RequestRefused(Exception):
    """A fault of the HTTP request itself, found before there is anything to detect in.

    Attributes:
        status: the HTTP status.
        code: stable, for programs.
        detail: for people; names what was wrong.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        """Keeps what the client will read."""
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail


class ClientGone(Exception):
    """The client closed its connection before the answer; nobody is there to be told."""


@dataclass(frozen=True)
class BodyLimits:
    """What a body may weigh and how slowly it may come."""

    max_bytes: int
    max_pause_s: float  # between two chunks
    min_bytes_per_s: int = 1  # on average, once it has had `max_pause_s`

    @classmethod
    def of(cls, settings: Settings) -> BodyLimits:
        """The limits of a deployment."""
        return cls(
            settings.max_body_bytes,
            settings.body_timeout_seconds,
            settings.body_min_bytes_per_second,
        )


class BodyMemory:
    """What the bodies of all requests hold together, of so many bytes."""

    def __init__(self, max_bytes: int) -> None:
        """Nothing is held yet."""
        self._max_bytes = max_bytes
        self._held_bytes = 0

    @contextmanager
    def account(self) -> Iterator[BodyAccount]:
        """What one request holds; it is free again when the request ends."""
        account = BodyAccount(self)
        try:
            yield account
        finally:
            self._held_bytes -= account.held_bytes

    def take(self, num_bytes: int) -> None:
        """Counts bytes that have come.

        Raises:
            Overloaded: where they are too many.
        """
        if self._held_bytes + num_bytes > self._max_bytes:
            raise Overloaded(
                "the service holds as many bytes of requests as it can", retry_after_seconds=1
            )
        self._held_bytes += num_bytes


@dataclass
class BodyAccount:
    """The bytes that one request holds."""

    memory: BodyMemory
    held_bytes: int = 0

    def take(self, num_bytes: int) -> None:
        """Counts bytes that have come.

        Raises:
            Overloaded: where all requests together hold too many.
        """
        self.memory.take(num_bytes)
        self.held_bytes += num_bytes


def parse_timeout_s(value: str | None) -> float | None:
    """Reads the timeout header: milliseconds to seconds.

    Raises:
        InvalidOptions: for anything but a positive number.
    """
    if value is None:
        return None
    try:
        timeout_ms = float(value)
    except ValueError:
        timeout_ms = math.nan
    if not math.isfinite(timeout_ms) or timeout_ms <= 0:
        raise InvalidOptions(f"{TIMEOUT_HEADER} is {value!r}; it takes milliseconds above 0")
    return timeout_ms / 1000


async def stream_body(
    headers: Mapping[str, str],
    receive: Receive,
    limits: BodyLimits,
    deadline: float | None = None,
    account: BodyAccount | None = None,
) -> AsyncIterator[bytes]:
    """The body's chunks as they come.

    Args:
        headers: of the request; a Content-Length that is too large is refused unread.
        receive: the ASGI channel.
        limits: a body without a length is refused as soon as it passes them.
        deadline: of the request, time.monotonic seconds.
        account: where the bytes are counted while the request lasts.

    Yields:
        Chunks of any size but zero.

    Raises:
        ImageTooLarge: for a body of more than `limits.max_bytes`.
        Overloaded: when the bodies of all requests take too much memory.
        RequestRefused: for a Content-Length that is no number, and a body that stalls or trickles.
        DeadlineExceeded: when the deadline passes before the body is whole.
        ClientGone: when the connection closes before the body is whole.
    """
    announced = _content_length(headers)
    if announced is not None and announced > limits.max_bytes:
        raise _too_large(limits)
    num_bytes, more = 0, True
    patience = _Patience(limits, deadline)
    while more:
        message = await patience.receive(receive, num_bytes)
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
            yield chunk


class _Patience:
    """How long the next chunk of a body is waited for."""

    def __init__(self, limits: BodyLimits, deadline: float | None) -> None:
        self._limits = limits
        self._started = time.monotonic()
        self._deadline = math.inf if deadline is None else deadline

    async def receive(self, receive: Receive, num_bytes: int) -> Message:
        """Receives the next message; `num_bytes` have come before.

        Raises:
            DeadlineExceeded: when the request's deadline comes first.
            RequestRefused: when the pause is too long, or all of it took too long.
        """
        limits, now = self._limits, time.monotonic()
        due = self._started + limits.max_pause_s + num_bytes / limits.min_bytes_per_s
        waits = {
            "deadline": self._deadline - now,
            "pause": limits.max_pause_s,
            "rate": due - now,
        }
        shortest = min(waits, key=waits.__getitem__)
        try:
            async with asyncio.timeout(waits[shortest]):
                return await receive()
        except TimeoutError:
            if shortest == "deadline":
                raise DeadlineExceeded(
                    "the deadline passed while the request's body was being received"
                ) from None
            reason = (
                f"paused for more than {limits.max_pause_s:g} s"
                if shortest == "pause"
                else f"came at less than {limits.min_bytes_per_s} bytes a second"
            )
            raise RequestRefused(408, "body_timeout", f"the request's body {reason}") from None


async def unless_client_leaves(work: Coroutine[Any, Any, _Answer], receive: Receive) -> _Answer:
    """Awaits `work`, and cancels it when the client closes its connection first.

    Only for a request whose body has been read whole.

    Raises:
        ClientGone: when the client left; `work` has ended by then.
    """
    worker = asyncio.current_task()
    assert worker is not None, "requests are served by tasks"
    watcher = asyncio.ensure_future(_wait_for_disconnect(receive))
    left = False

    def on_watcher_end(ended: asyncio.Task[None]) -> None:
        nonlocal left
        if not ended.cancelled():
            left = True
            worker.cancel()

    watcher.add_done_callback(on_watcher_end)
    try:
        return await work
    except asyncio.CancelledError:
        # Our own cancellation becomes ClientGone; somebody else's goes on as it came.
        if left and worker.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        watcher.remove_done_callback(on_watcher_end)
        watcher.cancel()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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
