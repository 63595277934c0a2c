"""The service under attack, and what the hostile clients share; see `hostile_clients`."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from benchmarks.serving.servers import HOST

TIMEOUT_SECONDS = 10.0


@dataclass
class Target:
    """The service under attack."""

    http_port: int
    grpc_port: int
    key: str

    def connect(self, port: int) -> socket.socket:
        """A TCP connection."""
        return socket.create_connection((HOST, port), TIMEOUT_SECONDS)

    def head(self, path: bytes, length: int, *more: bytes) -> bytes:
        """The head of a POST request with the key."""
        lines = [
            b"POST " + path + b" HTTP/1.1",
            b"Host: service",
            b"Authorization: Bearer " + self.key.encode(),
            b"Content-Length: %d" % length,
            *more,
        ]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def send(self, data: bytes) -> str:
        """Sends data over HTTP.

        Returns:
            The status of the first response, or why there is none.
        """
        with self.connect(self.http_port) as connection:
            with suppress(OSError):  # the response may come before all data is sent
                connection.sendall(data)
            return status_of(connection)

    def post(self, image: bytes, timeout_ms: int = 500) -> str:
        """Sends an image with the key and a deadline; see `send`."""
        deadline = b"X-Request-Timeout-Ms: %d" % timeout_ms
        head = self.head(b"/detect", len(image), b"Connection: close", deadline)
        return self.send(head + image)

    def channel(self) -> grpc.Channel:
        """A gRPC connection of its own."""
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        return grpc.insecure_channel(f"{HOST}:{self.grpc_port}", options=options)


def status_of(connection: socket.socket) -> str:
    """The status of the next response, or why there is none."""
    try:
        head = connection.recv(64)
    except TimeoutError:
        return "no response"
    except OSError:
        return "closed"
    if not head:
        return "closed"
    return head[9:12].decode("latin-1") if head.startswith(b"HTTP/1.1 ") else "other bytes"


@dataclass
class Held:
    """Things that stay open; above the limit, the oldest is closed."""

    limit: int
    things: deque[Any] = field(default_factory=deque)

    def add(self, thing: Any, close: Callable[[Any], None]) -> None:
        """Holds one more."""
        self.things.append(thing)
        if len(self.things) > self.limit:
            close(self.things.popleft())


# One attempt of a client; returns its outcome.
Attempt = Callable[[Target], str]
