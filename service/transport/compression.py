"""Decompresses request bodies in threads, within the limits of a body's size and of all bodies."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

from starlette.datastructures import Headers
from starlette.types import Receive

from service.errors import short_repr
from service.transport.http_body import BodyAccount, BodyLimits, read_body
from service.transport.http_request import RequestRefused

_AUTO_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32  # detects the format by its header
_ENCODINGS = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
_IDENTITY = frozenset({"", "identity"})
_INPUT_BYTES = 1 << 18
_STEP_BYTES = 1 << 20


def compression_of(encoding: str) -> str | None:
    """The compression that a Content-Encoding header names: "gzip", "deflate" or None.

    Raises:
        RequestRefused: for another encoding, and for several.
    """
    names = [part.strip().lower() for part in encoding.split(",")]
    names = [name for name in names if name not in _IDENTITY]
    if not names:
        return None
    if len(names) > 1 or names[0] not in _ENCODINGS:
        detail = f"Content-Encoding is {short_repr(encoding)}; it may be gzip or deflate"
        raise RequestRefused(415, "unsupported_encoding", detail)
    return _ENCODINGS[names[0]]


async def read_plain_body(
    headers: Headers,
    receive: Receive,
    limits: BodyLimits,
    deadline: float | None,
    account: BodyAccount,
) -> bytes:
    """Receives a whole body as `read_body` does, and decompresses it.

    Raises:
        RequestRefused: also for what `inflate_body` refuses.
    """
    encoding = ",".join(headers.getlist("content-encoding"))
    compression_of(encoding)  # before the body is received
    received = await read_body(headers, receive, limits, deadline, account)
    return await inflate_body(received, encoding, limits.max_bytes, account)


async def inflate_body(data: bytes, encoding: str, max_bytes: int, account: BodyAccount) -> bytes:
    """Decodes a body according to its Content-Encoding.

    Args:
        data: the received bytes.
        encoding: the header's value; empty or "identity" for a body that is not compressed.
        max_bytes: maximum size of the decompressed body.
        account: counts the decompressed bytes.

    Raises:
        RequestRefused: for an unknown encoding, broken data, or more than `max_bytes`.
        Overloaded: when the bodies of all requests take too much memory.
    """
    name = compression_of(encoding)
    if name is None:
        return data
    parts, num_bytes = [], 0
    async for part in _inflate(data, name):
        num_bytes += len(part)
        if num_bytes > max_bytes:
            detail = f"the body inflates to more than the {max_bytes} bytes accepted"
            raise RequestRefused(413, "body_too_large", detail)
        account.take(len(part))
        parts.append(part)
    return await asyncio.to_thread(b"".join, parts)


async def _inflate(data: bytes, name: str) -> AsyncIterator[bytes]:
    """Yields parts of at most `_STEP_BYTES`."""
    stream = zlib.decompressobj(_AUTO_GZIP_OR_ZLIB)
    read, pending = 0, b""
    while not stream.eof:
        if not pending:  # small pieces of input: what is left of one is copied at each step
            pending = data[read : read + _INPUT_BYTES]
            read += len(pending)
        given = len(pending)
        try:
            part = await asyncio.to_thread(stream.decompress, pending, _STEP_BYTES)
        except zlib.error as error:
            raise _malformed(f"the body is not valid {name}: {error}") from None
        pending = stream.unconsumed_tail
        if part:
            yield part
        elif not given and not stream.eof:
            raise _malformed(f"the body ends before its {name} data does")
    if stream.unused_data or read < len(data):
        # Also a second gzip member: thousands of empty ones would cost much CPU time.
        raise _malformed(f"the body goes on after the end of its {name} data")


def _malformed(detail: str) -> RequestRefused:
    return RequestRefused(400, "malformed_request", detail)
