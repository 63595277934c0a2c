"""What the HTTP adapters share of a request: its body within limits, its deadline, its client.

    client --body, chunk by chunk--> stream_body --> adapter --work--> unless_client_leaves

`RequestRefused` and `ClientGone` are the faults of the exchange itself; what is wrong with an
image or an option is a `DetectionError` as everywhere.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.types import Message, Receive

from service.errors import DeadlineExceeded, ImageTooLarge, InvalidOptions

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
) -> AsyncIterator[bytes]:
    """The body's chunks as they come.

    Args:
        headers: of the request; a Content-Length that is too large is refused unread.
        receive: the ASGI channel.
        limits: a body without a length is refused as soon as it passes them.
        deadline: of the request, time.monotonic seconds.

    Yields:
        Chunks of any size but zero.

    Raises:
        ImageTooLarge: for a body of more than `limits.max_bytes`.
        RequestRefused: for a Content-Length that is no number, and a body that stalls.
        DeadlineExceeded: when the deadline passes before the body is whole.
        ClientGone: when the connection closes before the body is whole.
    """
    announced = _content_length(headers)
    if announced is not None and announced > limits.max_bytes:
        raise _too_large(limits)
    num_bytes, more = 0, True
    while more:
        message = await _receive_in_time(receive, limits.max_pause_s, deadline)
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        num_bytes += len(chunk)
        if num_bytes > limits.max_bytes:
            raise _too_large(limits)
        if chunk:
            yield chunk


async def _receive_in_time(receive: Receive, max_pause_s: float, deadline: float | None) -> Message:
    left_s = math.inf if deadline is None else deadline - time.monotonic()
    try:
        async with asyncio.timeout(min(max_pause_s, left_s)):
            return await receive()
    except TimeoutError:
        if left_s <= max_pause_s:
            raise DeadlineExceeded(
                "the deadline passed while the request's body was being received"
            ) from None
        raise RequestRefused(
            408, "body_timeout", f"the request's body paused for more than {max_pause_s:g} s"
        ) from None


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
