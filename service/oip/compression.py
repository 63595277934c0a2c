"""Decompresses request bodies in a thread, up to the size limit of a body."""

from __future__ import annotations

import asyncio
import zlib

from service.oip.errors import TOO_LARGE, UNKNOWN_ENCODING, OipRefused, malformed

_AUTO_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32  # detects the format by its header
_ENCODINGS = ("gzip", "deflate")


async def inflate_body(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """Decodes a body according to its Content-Encoding.

    Args:
        data: the received bytes.
        encoding: the header's value; empty or "identity" for a body that is not compressed.
        max_bytes: maximum size of the decompressed body.

    Raises:
        OipRefused: for an unknown encoding, broken data, or more than `max_bytes`.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return data
    if name not in _ENCODINGS:
        raise OipRefused(
            UNKNOWN_ENCODING,
            f"Content-Encoding is {encoding[:100]!r}; it may be {' or '.join(_ENCODINGS)}",
        )
    return await asyncio.to_thread(_inflate, data, name, max_bytes)


def _inflate(data: bytes, name: str, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(_AUTO_GZIP_OR_ZLIB)
    try:
        inflated = stream.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise malformed(f"the body is not valid {name}: {error}") from None
    if len(inflated) > max_bytes:
        raise OipRefused(
            TOO_LARGE, f"the body inflates to more than the {max_bytes} bytes accepted"
        )
    if not stream.eof:
        raise malformed(f"the body ends before its {name} data does")
    if stream.unused_data:
        # Also a second gzip member: thousands of empty ones would cost much CPU time.
        raise malformed(f"the body goes on after the end of its {name} data")
    return inflated
