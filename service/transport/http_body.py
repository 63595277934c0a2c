"""What the HTTP adapters share of a request: its body within limits, its deadline, its client.

    client --body, chunk by chunk--> receive_body --> adapter --work--> unless_client_leaves

`RequestRefused` and `ClientGone` are the faults of the exchange itself; what is wrong with an
image or an option is a `DetectionError` as everywhere.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

from starlette.types import Receive, Scope

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

    def account(self) -> BodyAccount:
        """What one request holds, in a `with` statement at whose end it is free again."""
        return BodyAccount(self)

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

    def give_back(self, num_bytes: int) -> None:
        """Counts bytes that are held no more."""
        self._held_bytes -= num_bytes


@dataclass(slots=True)
class BodyAccount:
    """The bytes that one request holds."""

    memory: BodyMemory
    held_bytes: int = 0

    def __enter__(self) -> Self:
        """Begins with nothing."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Gives everything back."""
        self.memory.give_back(self.held_bytes)

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


async def read_body(
    headers: Mapping[str, str],
    receive: Receive,
    limits: BodyLimits,
    deadline: float | None = None,
    account: BodyAccount | None = None,
) -> bytes:
    """The whole body; see `receive_body` for arguments and errors."""
    chunks: list[bytes] = []
    await receive_body(headers, receive, limits, chunks.append, deadline, account)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def receive_body(  # noqa: PLR0913, PLR0917 - a request's head and body, and their bounds
    headers: Mapping[str, str],
    receive: Receive,
    limits: BodyLimits,
    take: Callable[[bytes], object],
    deadline: float | None = None,
    account: BodyAccount | None = None,
) -> None:
    """Receives the body, chunk by chunk.

    Args:
        headers: of the request; a Content-Length that is too large is refused unread.
        receive: the ASGI channel.
        limits: a body without a length is refused as soon as it passes them.
        take: is given the chunks as they come, of any size but zero.
        deadline: of the request, time.monotonic seconds.
        account: where the bytes are counted while the request lasts.

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
    patience, loop = _Patience(limits, deadline), asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as timer:
            while more:
                timer.reschedule(loop.time() + patience.for_chunk_after(num_bytes))
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
        raise patience.ended() from None


class _Patience:
    """How long the next chunk of a body is waited for."""

    def __init__(self, limits: BodyLimits, deadline: float | None) -> None:
        self._limits = limits
        self._started = time.monotonic()
        self._deadline = math.inf if deadline is None else deadline
        self._reason = ""

    def for_chunk_after(self, num_bytes: int) -> float:
        """Seconds, where `num_bytes` have come before."""
        limits, now = self._limits, time.monotonic()
        due = self._started + limits.max_pause_s + num_bytes / limits.min_bytes_per_s
        seconds, self._reason = min(
            (self._deadline - now, "deadline"), (limits.max_pause_s, "pause"), (due - now, "rate")
        )
        return seconds

    def ended(self) -> DeadlineExceeded | RequestRefused:
        """What to raise when the wait was as long as that."""
        if self._reason == "deadline":
            return DeadlineExceeded(
                "the deadline passed while the request's body was being received"
            )
        reason = (
            f"paused for more than {self._limits.max_pause_s:g} s"
            if self._reason == "pause"
            else f"came at less than {self._limits.min_bytes_per_s} bytes a second"
        )
        return RequestRefused(408, "body_timeout", f"the request's body {reason}")


class Connection(Protocol):
    """What our own server puts into a scope's state as `connection`: ASGI tells only who asks.

    Attributes:
        lost: whether the client is gone.
        on_lost: called once when it goes; for the one request that is being answered.
    """

    lost: bool
    on_lost: Callable[[], None] | None


async def unless_client_leaves(
    work: Coroutine[Any, Any, _Answer], scope: Scope, receive: Receive
) -> _Answer:
    """Awaits `work`, and cancels it when the client closes its connection first.

    Only for a request whose body has been read whole.

    Raises:
        ClientGone: when the client left; `work` has ended by then.
    """
    worker = asyncio.current_task()
    assert worker is not None, "requests are served by tasks"
    left = False

    def leave() -> None:
        nonlocal left
        left = True
        worker.cancel()

    stop_watching = _watch(scope, receive, leave)
    try:
        return await work
    except asyncio.CancelledError:
        # Our own cancellation becomes ClientGone; somebody else's goes on as it came.
        if left and worker.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        stop_watching()


def _watch(scope: Scope, receive: Receive, leave: Callable[[], None]) -> Callable[[], object]:
    """Calls `leave` when the client goes, until the returned function is called."""
    connection: Connection | None = scope.get("state", {}).get("connection")
    if connection is None:  # another server than ours: only a task can wait for the message
        watcher = asyncio.ensure_future(_wait_for_disconnect(receive))
        watcher.add_done_callback(lambda ended: None if ended.cancelled() else leave())
        return watcher.cancel

    def stop() -> None:
        connection.on_lost = None

    connection.on_lost = leave
    if connection.lost:
        leave()
    return stop


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
