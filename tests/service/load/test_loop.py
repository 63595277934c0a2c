"""Responses of the measured service that are not one response to one request."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import pytest

from service.load.loop import Exchange, Load, _Connection

FINAL = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nx"


class Transport:
    """Records whether it was closed."""

    aborted = False

    def __init__(self) -> None:
        self.sock = socket.socket()

    def get_extra_info(self, _name: str) -> socket.socket:
        return self.sock

    def write(self, _data: bytes) -> None:
        """Sends nothing."""

    def abort(self) -> None:
        self.aborted = True


async def _respond(*pieces: bytes) -> tuple[Exchange, bool]:
    """Gives a connection these bytes after a request; returns the exchange and its `aborted`."""
    connection, transport, exchange = _Connection(Load(1, [b""], 1)), Transport(), Exchange(0, 0.0)
    connection.connection_made(cast(asyncio.Transport, transport))
    connection.send(exchange, b"")
    for piece in pieces:
        connection.data_received(piece)
    transport.sock.close()
    return exchange, transport.aborted


@pytest.mark.parametrize("status", [b"100 Continue", b"103 Early Hints"])
async def test_an_interim_response_is_not_the_response(status: bytes) -> None:
    interim = b"HTTP/1.1 " + status + b"\r\nLink: </a>\r\n\r\n"
    for pieces in ((interim, interim, FINAL), (interim + FINAL,)):
        exchange, aborted = await _respond(*pieces)
        assert (exchange.status, exchange.body, aborted) == (200, b"{}", False)
        assert exchange.headers is not None
        assert b"link" not in exchange.headers


@pytest.mark.parametrize("data", [UPGRADE, b"SSH-2.0-x\r\n"])
async def test_another_protocol_is_no_response(data: bytes) -> None:
    exchange, aborted = await _respond(data)
    assert (exchange.status, aborted) == (0, True)
