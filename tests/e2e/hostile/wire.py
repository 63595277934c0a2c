"""A bare connection to the service, for what no HTTP client would send."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from tests.support.running import Service

PATIENCE_SECONDS = 60.0


class Wire:
    """A TCP connection; what comes back is read until the service closes it."""

    def __init__(self, service: Service) -> None:
        parts = urlsplit(service.url)
        self.socket = socket.create_connection((parts.hostname, parts.port), PATIENCE_SECONDS)

    def send(self, data: bytes) -> bool:
        """Whether the service still took it."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def end_sending(self) -> None:
        """Closes our half, if the service has not closed both."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def read_to_end(self) -> bytes:
        """Everything until the connection ends, which it must."""
        parts: list[bytes] = []
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                part = self.socket.recv(1 << 16)
            except ConnectionError:
                return b"".join(parts)
            if not part:
                return b"".join(parts)
            parts.append(part)
        raise AssertionError("the connection was not closed")

    def read_answer(self) -> bytes:
        """One answer that has a Content-Length."""
        data = b""
        while b"\r\n\r\n" not in data:
            part = self.socket.recv(1 << 16)
            assert part, data
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        ]
        while len(body) < lengths[0]:
            part = self.socket.recv(1 << 16)
            assert part, body
            body += part
        return head + b"\r\n\r\n" + body


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
