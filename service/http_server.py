"""uvicorn, run by us: our signals, bounded request heads, and a drain that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.settings import Settings

_BACKLOG = 2048
_CONTINUE = b"HTTP/1.1 100 "
_MAX_HEAD_BYTES = 64 * 1024  # of a request line with its headers
# A connection that is idle when the server closes may have a request on the wire already.
_LAST_REQUEST_SECONDS = 0.2


@dataclass
class Door:
    """What all connections of one server share."""

    head_timeout_seconds: float
    closing: bool = False  # no further request on any connection


class HttpServer(uvicorn.Server):
    """One listening socket and an ASGI application behind it."""

    def __init__(
        self,
        app: Any,
        settings: Settings,
        listener: socket.socket,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Prepares a server.

        Args:
            app: an ASGI application.
            settings: its limits and timeouts.
            listener: bound and listening; closed by the server when it drains.
            tls: set where it speaks HTTPS; connections made later use what it holds then.
        """
        self._door = Door(settings.header_timeout_seconds)
        self._listener = listener
        protocol = type("_Connection", (GuardedConnection,), {"door": self._door})
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                limit_concurrency=settings.max_connections + 1,
                timeout_keep_alive=settings.keep_alive_timeout_seconds,
                ssl_context_factory=None if tls is None else lambda *_: tls,
            )
        )

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._listener.getsockname()[1])

    async def run_until_drained(self) -> None:
        """Serves until `drain` is called and every request that came before is answered."""
        await self.serve(sockets=[self._listener])

    def drain(self) -> None:
        """Takes no new connection, lets every open one finish its request, then ends."""
        self.should_exit = True

    def give_up(self) -> None:
        """Ends without waiting for requests that are still open."""
        self.should_exit = self.force_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals alone: `service.app` handles them."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the door, then does as uvicorn does."""
        self._door.closing = True
        await super().shutdown(sockets)


class GuardedConnection(HttpToolsProtocol):
    """A connection whose client must send its request head in time and in measure.

    uvicorn bounds neither: a trickle of header bytes would hold a connection for ever.
    """

    door: ClassVar[Door]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes what uvicorn gives."""
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock of the first request's head."""
        super().connection_made(transport)
        if self.door.closing:
            self.shutdown()
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._head_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feeds the parser; watches a head that is not whole yet."""
        super().data_received(data)
        if self.transport.is_closing() or not self._between_requests():
            return
        self._head_bytes += len(data)
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")
        elif self._head_timer is None and self.timeout_keep_alive_task is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._head_arrived()
        super().on_headers_complete()
        if self.cycle is not None:
            _WholeAnswer(self.cycle)
        if self.door.closing and self.cycle is not None:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Ends after the request at hand; an idle connection gets a moment to bring its last."""
        if self._between_requests():
            self.loop.call_later(_LAST_REQUEST_SECONDS, self._close_if_idle)
        else:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        """As uvicorn does, but a draining server waits for no further request."""
        super().on_response_complete()
        if self.door.closing and self._between_requests():
            self.transport.close()

    def _between_requests(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _close_if_idle(self) -> None:
        if self._head_bytes == 0 and self._between_requests():
            self.transport.close()

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self.door.head_timeout_seconds, self._on_slow_head)

    def _head_arrived(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_slow_head(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            self._refuse(b"408 Request Timeout")
        else:
            self.transport.close()

    def _refuse(self, status: bytes) -> None:
        self._head_arrived()
        head = (b"HTTP/1.1 ", status, b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.write(b"".join(head))
        self.transport.close()


class _WholeAnswer:
    """Holds the head of an answer back until its body comes: one system call instead of two.

    It takes the place of the transport in uvicorn's object for one request and its answer.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        """Steps between a request's answer and its connection."""
        self._transport = cycle.transport
        self._on_response = cycle.on_response
        self._held = b""
        self._began = False
        cycle.transport = cast(asyncio.Transport, self)
        cycle.on_response = self._on_complete

    def write(self, data: bytes) -> None:
        """Sends data with what was held back, or holds back a head."""
        if not self._began and not data.startswith(_CONTINUE):
            self._began = True
            self._held = data
        else:
            held, self._held = self._held, b""
            self._transport.write(held + data if held else data)

    def is_closing(self) -> bool:
        """Whether the connection ends."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Ends the connection after what was written."""
        self._flush()
        self._transport.close()

    def _on_complete(self) -> None:
        self._flush()  # an answer to HEAD has no body to go with
        self._on_response()

    def _flush(self) -> None:
        held, self._held = self._held, b""
        if held:
            self._transport.write(held)


def listen(host: str, port: int) -> socket.socket:
    """Binds and listens, so that a taken port is told before anything is started.

    Args:
        host: an address or a name.
        port: 0 picks a free one.

    Raises:
        OSError: where that is not possible.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
