"""Decompresses request bodies in threads, within the limits of a body's size and of all bodies."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

from service.oip.errors import TOO_LARGE, UNKNOWN_ENCODING, OipRefused, malformed
from service.transport.http_body import BodyAccount

_AUTO_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32  # detects the format by its header
_ENCODINGS = ("gzip", "deflate")
_INPUT_BYTES = 1 << 18
_STEP_BYTES = 1 << 20


async def inflate_body(data: bytes, encoding: str, max_bytes: int, account: BodyAccount) -> bytes:
    """Decodes a body according to its Content-Encoding.

    Args:
        data: the received bytes.
        encoding: the header's value; empty or "identity" for a body that is not compressed.
        max_bytes: maximum size of the decompressed body.
        account: counts the decompressed bytes.

    Raises:
        OipRefused: for an unknown encoding, broken data, or more than `max_bytes`.
        Overloaded: when the bodies of all requests take too much memory.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return data
    if name not in _ENCODINGS:
        raise OipRefused(
            UNKNOWN_ENCODING,
            f"Content-Encoding is {encoding[:100]!r}; it may be {' or '.join(_ENCODINGS)}",
        )
    parts, num_bytes = [], 0
    async for part in _inflate(data, name):
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise OipRefused(
                TOO_LARGE, f"the body inflates to more than the {max_bytes} bytes accepted"
            )
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
            raise malformed(f"the body is not valid {name}: {error}") from None
        pending = stream.unconsumed_tail
        if part:
            yield part
        elif not given and not stream.eof:
            raise malformed(f"the body ends before its {name} data does")
    if stream.unused_data or read < len(data):
        # Also a second gzip member: thousands of empty ones would cost much CPU time.
        raise malformed(f"the body goes on after the end of its {name} data")
