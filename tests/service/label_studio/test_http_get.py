"""Responses that arrive in pieces, and interim responses before them."""

from __future__ import annotations

import pytest

from service.label_studio.http_get import HttpGet, Unavailable, _Response
from tests.service.label_studio.conftest import LabelStudio

INTERIM = b"HTTP/1.1 103 Early Hints\r\nContent-Length: 0\r\n\r\n"
FINAL = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"


@pytest.mark.parametrize("size", [1, len(INTERIM), len(INTERIM) + len(FINAL)])
def test_an_interim_response_is_not_the_response(size: int) -> None:
    response, data = _Response(), INTERIM + FINAL
    for start in range(0, len(data), size):
        assert not response.complete
        response.feed(data[start : start + size])
    assert (response.status, b"".join(response.parts)) == (200, b"abc")
    assert response.complete


def test_the_end_that_an_interim_response_names_is_its_own() -> None:
    response = _Response()
    response.feed(INTERIM + b"HTTP/1.0 200 OK\r\n\r\nabc")
    assert response.headers_complete
    assert not response.has_end


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"SSH-2.0-x\r\n", "not HTTP"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nx",
            "another",
        ),
    ],
)
def test_another_protocol_is_no_response(data: bytes, words: str) -> None:
    with pytest.raises(Unavailable, match=words):
        _Response().feed(data)


async def test_endless_interim_responses_end_at_the_limit_of_a_head(
    label_studio: LabelStudio,
) -> None:
    host, port = label_studio.url.removeprefix("http://").split(":")
    get = HttpGet("http", host, int(port), 1 << 20, 10.0)
    with pytest.raises(Unavailable, match="head of its response is too large"):
        await get.get("/data/upload/interim", None)


async def test_a_name_that_no_host_can_have_is_named() -> None:
    with pytest.raises(Unavailable, match="host name is not valid"):
        await HttpGet("http", "a..b", 80, 1 << 20, 10.0).get("/data/a", None)
