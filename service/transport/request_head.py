"""Rules for the head of an HTTP request, beyond those of the parser (RFC 9110 and 9112)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus

import orjson

from service.transport.http_request import RequestRefused

MAX_HEAD_BYTES = 64 * 1024  # of a request line with its headers; also of trailers
MAX_HEADERS = 256

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

_OLD_VERSIONS = frozenset({"0.9", "1.0"})
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
_CONTINUE = b"100-continue"


def check_head(http_version: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Checks the headers that decide how a request is to be handled.

    Args:
        http_version: such as "1.1".
        headers: with names in lower case.

    Returns:
        Whether the client waits for `100 Continue` before it sends the body.

    Raises:
        RequestRefused: with 400 without exactly one valid Host (HTTP/1.0 may have none), with 417
            for an expectation other than 100-continue.
    """
    hosts, expectation = 0, b""
    for name, value in headers:
        if name == b"host":
            hosts += 1
            if not _HOST.fullmatch(value):
                raise RequestRefused(400, "invalid_header", "Host is not a host name and port")
        elif name == b"expect":
            expectation = expectation or value
    old = http_version in _OLD_VERSIONS
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
