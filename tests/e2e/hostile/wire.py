"""A raw TCP connection to the service, for requests that no HTTP client would send."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from tests.support.running import Service

TIMEOUT_SECONDS = 300.0


class Wire:
    """A TCP connection to the service's HTTP port."""

    def __init__(self, service: Service) -> None:
        parts = urlsplit(service.url)
        self.socket = socket.create_connection((parts.hostname, parts.port), TIMEOUT_SECONDS)

    def send(self, data: bytes) -> bool:
        """Sends data; returns False if the connection is closed."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def end_sending(self) -> None:
        """Closes the sending half, unless the service has closed both."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def read_to_end(self) -> bytes:
        """Returns all data until the service closes the connection; fails if it does not."""
        parts: list[bytes] = []
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            try:
                part = self.socket.recv(1 << 16)
            except ConnectionError:
                return b"".join(parts)
            if not part:
                return b"".join(parts)
            parts.append(part)
        raise AssertionError("the connection was not closed")


@contextmanager
def wire(service: Service) -> Iterator[Wire]:
    connection = Wire(service)
    try:
        yield connection
    finally:
        connection.socket.close()


def request(*headers: bytes, body: bytes = b"", path: bytes = b"/detect") -> bytes:
    head = [b"POST " + path + b" HTTP/1.1", b"Host: test", *headers]
    return b"\r\n".join(head) + b"\r\n\r\n" + body
