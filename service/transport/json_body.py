"""JSON bodies that carry image files as base64 text.

One call of a JSON parser on such a body would hold the interpreter lock, and with it the event
loop, for as long as it takes to copy tens of megabytes. So long strings are cut out before parsing.
Those of images are then read in chunks; the others are put back into the document.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import orjson

from model.images.formats import image_kind

LARGE_JSON_BYTES = 100_000  # larger bodies are read in a thread
_QUOTE, _BACKSLASH = b'"', b"\\"
_LONG_STRING = 16_384  # bytes
_MAX_OTHER_STRING = 1 << 20  # bytes; of a string that is no image
_CHUNK = 262_144  # bytes
_LONGEST_ESCAPE = 6  # bytes: \u002b
_SIGNATURE_BYTES = 64  # of an image file
_LINE_ENDS = b"\r\n"
# A few bytes of JSON can take hundreds of bytes of memory, so too many small values are refused
# before parsing.
MAX_VALUES = 10_000
_SEPARATORS = (b"{", b"[", b",")


_Document = TypeVar("_Document")


class JsonError(ValueError):
    """A body that is not JSON, or not what is accepted; the message says what is wrong."""


class JsonText:
    """A long string of a JSON body, as it stands there: with its escapes."""

    def __init__(self, raw: memoryview) -> None:
        """Takes the bytes between the quotes."""
        self._raw = raw

    def __repr__(self) -> str:
        """For error messages."""
        return f"<text of {len(self._raw)} bytes>"

    def chunks(self) -> Iterator[bytes]:
        """Yields the text without escapes, as UTF-8 in chunks of bounded size.

        Raises:
            JsonError: for an invalid escape.
        """
        start = 0
        while start < len(self._raw):
            chunk = bytes(self._raw[start : start + _CHUNK])
            start += len(chunk)
            if start < len(self._raw):
                escape = chunk.rfind(_BACKSLASH, -_LONGEST_ESCAPE)
                if escape >= 0:  # it may continue in the next chunk
                    start -= len(chunk) - escape
                    chunk = chunk[:escape]
            yield _unescape(chunk) if _BACKSLASH in chunk else chunk

    def whole(self) -> str:
        """Returns the text without escapes.

        Raises:
            JsonError: if it is invalid, or too long for anything but an image.
        """
        if len(self._raw) > _MAX_OTHER_STRING:
            raise JsonError(
                f"the request's JSON has a text of {len(self._raw)} bytes that is not an image; "
                f"at most {_MAX_OTHER_STRING} are accepted"
            )
        try:
            return str(_parse(b'"%b"' % bytes(self._raw)))
        except orjson.JSONDecodeError as error:
            raise JsonError(f"the request is not JSON: {error}") from None


async def parse_body(body: bytes, parse: Callable[[bytes], _Document]) -> _Document:
    """Returns `parse(body)`, which runs in a thread for a large body."""
    if len(body) > LARGE_JSON_BYTES:
        return await asyncio.to_thread(parse, body)
    return parse(body)


def read_json(data: bytes, image_path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Reads a JSON object; an empty body is an empty object.

    Args:
        data: the body.
        image_path: the names that lead to the texts of images, "*" for any name; there may be
            arrays in between.
            A long string in this place is a `JsonText`, one anywhere else a str.

    Raises:
        JsonError: for anything else, and for more than `MAX_VALUES` values.
    """
    if not data:
        return {}
    if (kind := image_kind(data[:_SIGNATURE_BYTES])) is not None:
        raise JsonError(
            f"the body is {kind}, but is sent as JSON: either its Content-Type or the body is wrong"
        )
    short, long_texts = _without_long_strings(data)
    if sum(map(short.count, _SEPARATORS)) > MAX_VALUES:
        raise _too_many_values()
    try:
        document = _parse(short)
    except orjson.JSONDecodeError as error:
        raise JsonError(f"the request is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise JsonError("the request is not a JSON object")
    if long_texts:
        _put_back(document, long_texts, image_path)
    return document


def _put_back(
    document: dict[str, Any], texts: Mapping[str, JsonText], image_path: tuple[str, ...]
) -> None:
    """Replaces placeholders, also of names: by a `JsonText` at `image_path`, otherwise by a str."""
    unseen: list[tuple[tuple[str, ...], Any]] = [((), document)]
    while unseen:  # no recursion: a document may be nested deeply
        path, node = unseen.pop()
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            inner = (*path, key) if isinstance(node, dict) else path
            if isinstance(value, dict | list):
                unseen.append((inner, value))
            elif isinstance(value, str) and (text := texts.get(value)) is not None:
                node[key] = text if _leads_to(image_path, inner) else text.whole()
        if isinstance(node, dict) and any(name in texts for name in node):
            items = [(texts[k].whole() if k in texts else k, v) for k, v in node.items()]
            node.clear()
            node.update(items)


def _leads_to(image_path: tuple[str, ...], path: tuple[str, ...]) -> bool:
    names = zip(image_path, path, strict=False)
    return len(image_path) == len(path) and all(want in ("*", name) for want, name in names)


def _parse(data: bytes) -> object:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # Shells put base64 with raw line ends into strings; elsewhere line ends have no meaning.
        joined = data.translate(None, _LINE_ENDS)
        if len(joined) == len(data):
            raise
        return orjson.loads(joined)


def _without_long_strings(data: bytes) -> tuple[bytes, dict[str, JsonText]]:
    """Replaces long strings by placeholders.

    Raises:
        JsonError: for more strings than `MAX_VALUES` values can have.
    """
    if len(data) <= _LONG_STRING:
        return data, {}
    token = secrets.token_hex(8)  # which no string of the client contains
    view, parts, texts = memoryview(data), list[bytes | memoryview](), dict[str, JsonText]()
    copied = 0
    for start, end in _strings(data):
        if end - start <= _LONG_STRING:
            continue
        name = f"<text of {end - start} bytes, {token}-{len(texts)}>"
        texts[name] = JsonText(view[start:end])
        parts += [view[copied:start], name.encode()]
        copied = end
    return b"".join([*parts, view[copied:]]), texts


def _strings(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields where the text of each string starts and ends; an unterminated one is left out."""
    start = previous = 0  # 0: outside a string
    quote = data.find(_QUOTE)
    for _ in range(4 * MAX_VALUES):  # two quotes for a name, two for its value
        if quote < 0:
            return
        if not start:
            start = quote + 1
        elif not _is_escaped(data, max(start, previous), quote):
            yield start, quote
            start = 0
        previous = quote + 1
        quote = data.find(_QUOTE, previous)
    if quote >= 0:
        raise _too_many_values()


def _is_escaped(data: bytes, start: int, quote: int) -> bool:
    """Whether an odd number of backslashes is before a quote; `start` is after the last quote."""
    backslashes = 0
    while quote - backslashes > start and data[quote - backslashes - 1] == _BACKSLASH[0]:
        backslashes += 1
        if backslashes > _LONGEST_ESCAPE:  # of no base64 text: counted fast
            text = data[start:quote]
            backslashes = len(text) - len(text.rstrip(_BACKSLASH))
            break
    return backslashes % 2 == 1


def _unescape(chunk: bytes) -> bytes:
    try:
        text: str = orjson.loads(b'"%b"' % chunk.translate(None, _LINE_ENDS))
    except orjson.JSONDecodeError as error:
        raise JsonError(f"the request is not JSON: {error}") from None
    return text.encode("utf-8", "replace")


def _too_many_values() -> JsonError:
    return JsonError(f"the request's JSON has more than {MAX_VALUES} values")
