"""Base64 text -> bytes, in every form that clients write it."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Iterator

from service.transport.json_body import JsonError, JsonText

_CHUNK = 262_144  # characters; the event loop runs between two of them
_STANDARD = bytes.maketrans(b"-_", b"+/")
_WHITESPACE = b" \t\r\n\v\f"
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")
_QUANTUM = 4  # characters for three bytes
_DATA_URL = b"data:"
_WEB_URLS = (b"http://", b"https://")


class Base64Error(ValueError):
    """Text that is not base64; the message is a clause that says why."""


def decode_base64(text: str | bytes | JsonText) -> bytes:
    """Decodes base64.

    Args:
        text: with the standard or the URL-safe alphabet, with or without padding and line ends;
            or a `data:` URL with it.

    Raises:
        Base64Error: for anything else.
    """
    decoded, rest, padded = [], b"", False
    for chunk in _without_url(_chunks(text)):
        digits = rest + chunk.translate(_STANDARD, _WHITESPACE)
        unpadded = digits.rstrip(b"=")
        if padded and unpadded:
            raise Base64Error("it goes on after its padding, '='")
        padded = padded or len(unpadded) < len(digits)
        whole = len(unpadded) - (0 if padded else len(unpadded) % _QUANTUM)
        rest = unpadded[whole:]
        decoded.append(_decode(unpadded[:whole]))
    decoded.append(_decode(rest))
    return b"".join(decoded)


def _decode(digits: bytes) -> bytes:
    """Decodes digits of the standard alphabet without padding."""
    missing = -len(digits) % _QUANTUM
    if missing == _QUANTUM - 1 and _NOT_BASE64.search(digits) is None:
        raise Base64Error("it is cut off: one character is left over")
    try:
        return binascii.a2b_base64(digits + b"=" * missing, strict_mode=True)
    except binascii.Error:
        wrong = _NOT_BASE64.search(digits)
        at = 0 if wrong is None else wrong.start()
        character = digits[at : at + _QUANTUM].decode("utf-8", "replace")[:1]
        raise Base64Error(f"it contains {character!r}") from None


def _chunks(text: str | bytes | JsonText) -> Iterator[bytes]:
    if isinstance(text, JsonText):
        try:
            yield from text.chunks()
        except JsonError as error:
            raise Base64Error(str(error)) from None
        return
    for start in range(0, len(text), _CHUNK):
        part = text[start : start + _CHUNK]
        yield part.encode("utf-8", "replace") if isinstance(part, str) else part


def _without_url(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Removes what is before the data of a `data:` URL."""
    first = True
    for chunk in chunks:
        yield _data_of_url(chunk) if first else chunk
        first = False


def _data_of_url(chunk: bytes) -> bytes:
    beginning = chunk[:100].lstrip().lower()
    if beginning.startswith(_WEB_URLS):
        raise Base64Error("it is a URL, and the service never downloads images")
    if not beginning.startswith(_DATA_URL):
        return chunk
    header, comma, data = chunk.partition(b",")
    if not comma:
        raise Base64Error("it is a data: URL without a comma")
    if not header.rstrip().lower().endswith(b";base64"):
        raise Base64Error("it is a data: URL without ;base64 before the comma")
    return data
