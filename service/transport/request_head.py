"""Rules for the head of an HTTP request, beyond those of the parser (RFC 9110 and 9112)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus

import orjson

from service.errors import short_repr
from service.transport.http_request import RequestRefused

MAX_HEAD_BYTES = 64 * 1024  # of a request line with its headers; also of trailers
MAX_HEADERS = 256
MAX_PIPELINED = 32  # requests of a connection that wait for the current one

MALFORMED = RequestRefused(400, "malformed_request", "the request is not well-formed HTTP/1.1")
LARGE_HEAD = RequestRefused(
    431, "header_too_large", f"the request's head is larger than {MAX_HEAD_BYTES >> 10} KiB"
)
MANY_HEADERS = RequestRefused(
    431, "header_too_large", f"the request has more than {MAX_HEADERS} headers"
)
LARGE_TRAILER = RequestRefused(
    431, "header_too_large", f"the trailer of the body is larger than {MAX_HEAD_BYTES >> 10} KiB"
)
INCOMPLETE = RequestRefused(400, "malformed_request", "the request ends before it is complete")
TOO_MANY_PIPELINED = RequestRefused(
    400, "malformed_request", f"more than {MAX_PIPELINED} requests wait for an earlier one"
)

_OLD_VERSION = "1.0"
_VERSIONS = frozenset({_OLD_VERSION, "1.1"})
_REQUEST_LINE = re.compile(
    rb"[\r\n]*([!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}) [^ \r\n]+ HTTP/1\.[01]\r?\n"
)
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
_CONTINUE = b"100-continue"
_CHUNKED = b"chunked"


def check_head(http_version: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Checks the headers that decide how a request is to be handled.

    Args:
        http_version: such as "1.1".
        headers: with names in lower case.

    Returns:
        Whether the client waits for `100 Continue` before it sends the body.

    Raises:
        RequestRefused: with 400 without exactly one valid Host (HTTP/1.0 may have none), and for a
            transfer coding in HTTP/1.0; with 417 for an expectation other than 100-continue, with
            501 for a transfer coding other than chunked, with 505 for another version.
    """
    if http_version not in _VERSIONS:
        detail = f"HTTP/{http_version} is not supported; send HTTP/1.1"
        raise RequestRefused(505, "http_version_not_supported", detail)
    old = http_version == _OLD_VERSION
    hosts, expectation, codings = 0, b"", b""
    for name, value in headers:
        if name == b"host":
            hosts += 1
            if not _HOST.fullmatch(value):
                raise RequestRefused(400, "invalid_header", "Host is not a host name and port")
        elif name == b"expect":
            expectation = expectation or value
        elif name == b"transfer-encoding":
            codings += b"," + value
    if codings:
        _check_codings(codings, old=old)
    if hosts > 1 or (not hosts and not old):
        found = f"{hosts} Host headers" if hosts else "no Host header"
        detail = f"the request has {found}; it needs one"
        raise RequestRefused(400, "invalid_header", detail)
    if old or not expectation:
        return False
    if expectation.lower() != _CONTINUE:
        text = expectation.decode("latin-1")
        detail = f"Expect is {text!r}; only {_CONTINUE.decode()} is supported"
        raise RequestRefused(417, "expectation_failed", detail)
    return True


def _check_codings(codings: bytes, *, old: bool) -> None:
    """Checks the transfer codings; the parser removes only the last one, chunked."""
    if old:
        raise RequestRefused(400, "invalid_header", "HTTP/1.0 has no Transfer-Encoding")
    names = [name for part in codings.split(b",") if (name := part.strip(b" \t").lower())]
    if names != [_CHUNKED]:
        text = short_repr(b", ".join(names).decode("latin-1"))
        detail = f"Transfer-Encoding is {text}; only chunked is supported"
        raise RequestRefused(501, "not_implemented", detail)


def refused_method(data: bytes) -> RequestRefused:
    """Why the parser refused a method: it knows no such method, or the line is no request at all.

    Args:
        data: begins with the request line.
    """
    line = _REQUEST_LINE.match(data)
    if line is None:
        return MALFORMED
    method = line[1].decode("ascii")
    return RequestRefused(501, "not_implemented", f"the method {method} is not supported")


def head_size(target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> int:
    """The bytes of a request target and headers, without white space around values."""
    return len(target) + sum(header_size(name, value) for name, value in headers)


def header_size(name: bytes, value: bytes) -> int:
    """The bytes of one header line."""
    return len(name) + len(value) + len(b": \r\n")


def response_to(refusal: RequestRefused) -> bytes:
    """The response to a request that no application sees; the connection is closed after it."""
    title = HTTPStatus(refusal.status).phrase
    problem = {
        "type": f"urn:lite-detr:problem:{refusal.code}",
        "title": title,
        "status": refusal.status,
        "detail": refusal.detail,
        "code": refusal.code,
    }
    body = orjson.dumps(problem)
    head = (
        f"HTTP/1.1 {refusal.status} {title}\r\n"
        "content-type: application/problem+json\r\n"
        f"content-length: {len(body)}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
