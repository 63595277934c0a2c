"""Calls that wait in gRPC's core while the event loop is busy: limited for all methods together."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from grpc.aio._server import Server

from service.rpc import RpcServer
from service.rpc import server as rpc_server
from tests.service.rest.standin import StandIn
from tests.service.rpc.caller import rpc_options

METHODS = (
    "/litedetr.v1.DetectionService/Detect",
    "/litedetr.v1.DetectionService/GetModel",
    "/grpc.health.v1.Health/Check",
    "/no.such.Service/Method",
)
PER_METHOD = 50
OPENED = 80  # of each method
_HEADERS, _RST_STREAM, _SETTINGS = 1, 3, 4  # frames of HTTP/2


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _head(path: str) -> bytes:
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "x",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )


class _BlockedServer:
    """A server in a thread, whose event loop does nothing until `go_on`."""

    def __init__(self) -> None:
        self.port = 0
        self._started, self._blocked, self._go_on = (threading.Event() for _ in range(3))
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(),))
        self._thread.start()
        assert self._blocked.wait(60)

    async def _serve(self) -> None:
        server = RpcServer(StandIn().as_detector(), rpc_options())
        await server.start()
        self.port = server.port
        self._blocked.set()
        self._go_on.wait(60)
        await server.stop(0)

    def go_on(self) -> None:
        self._go_on.set()
        self._thread.join(60)


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[_BlockedServer]:
    methods: set[str] = set()
    register = Server.add_registered_method_handlers

    def count(server: Server, service: str, handlers: dict[str, object]) -> None:
        methods.update(f"/{service}/{name}" for name in handlers)
        register(server, service, handlers)  # type: ignore[arg-type]

    monkeypatch.setattr(Server, "add_registered_method_handlers", count)
    # The number of methods is known once a server has started; one more stands for unknown ones.
    first = _BlockedServer()
    first.go_on()
    limit = PER_METHOD * (len(methods) + 1)
    monkeypatch.setattr(rpc_server, "_MAX_PENDING_CALLS", limit)
    server = _BlockedServer()
    yield server
    server.go_on()


def _ended_streams(received: bytes) -> set[int]:
    ended, place = set(), 0
    while place + 9 <= len(received):
        length = int.from_bytes(received[place : place + 3], "big")
        kind, flags = received[place + 3], received[place + 4]
        if kind == _RST_STREAM or (kind == _HEADERS and flags & 1):
            ended.add(int.from_bytes(received[place + 5 : place + 9], "big"))
        place += 9 + length
    return ended


@pytest.mark.slow
def test_waiting_calls_are_limited_for_all_methods_together(blocked: _BlockedServer) -> None:
    refused: Counter[str] = Counter()
    with ExitStack() as stack:
        connections = {}
        for method in METHODS:
            connection = stack.enter_context(
                socket.create_connection(("127.0.0.1", blocked.port), 60)
            )
            head = _head(method)
            calls = (_frame(_HEADERS, 4, 1 + 2 * n, head) for n in range(OPENED))
            preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0)
            connection.sendall(preface + b"".join(calls))
            connections[method] = connection
        for method, connection in connections.items():
            received = b""
            connection.settimeout(1)
            with suppress(TimeoutError):
                while len(_ended_streams(received)) < OPENED and (part := connection.recv(1 << 16)):
                    received += part
            refused[method] = len(_ended_streams(received))
    # gRPC has asked for one call of each method already, which does not wait.
    expected = OPENED - PER_METHOD
    for method in METHODS:
        assert expected - 3 <= refused[method] <= expected, refused
