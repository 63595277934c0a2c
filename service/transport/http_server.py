"""uvicorn with connection limits, without signal handlers, and with a lossless drain."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from service.settings import Settings
from service.transport.http_connection import ConnectionLimits, LimitedConnection
from service.transport.listen_queue import has_unread, stop_accepting_new

_BACKLOG = 2048
_LAST_CONNECTIONS_SECONDS = 1.0  # at most, to accept connections that are established
_RECHECK_SECONDS = 0.005
_DATE_SECONDS = 1.0  # after which the Date header is written anew


class HttpServer(uvicorn.Server):
    """An ASGI application on one listening socket."""

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
            settings: limits and timeouts.
            listener: bound and listening; closed by the server when it drains.
            tls: for HTTPS; new connections use its certificate at that time.
        """
        self._limits = ConnectionLimits(
            head_timeout_seconds=settings.header_timeout_seconds,
            send_timeout_seconds=settings.send_timeout_seconds,
            send_max_seconds=settings.send_max_seconds,
            max_connections=settings.max_connections,
        )
        self._listener = listener
        self._handshake_seconds = settings.header_timeout_seconds
        self._connection_class: type[LimitedConnection] = type(
            "_Connection", (LimitedConnection,), {"limits": self._limits}
        )
        self._ending = asyncio.Event()
        super().__init__(
            uvicorn.Config(
                app,
                http=self._connection_class,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=settings.keep_alive_timeout_seconds,
                ssl_context_factory=None if tls is None else lambda *_: tls,
            )
        )

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._listener.getsockname()[1])

    @property
    def open_requests(self) -> int:
        """Requests whose clients do not have the whole response yet; pipelined ones count once."""
        connections = self.server_state.connections
        return sum(
            isinstance(connection, LimitedConnection) and connection.has_open_request
            for connection in connections
        )

    async def run_until_drained(self) -> None:
        """Serves until `drain` is called and every accepted request has its response."""
        await self.serve(sockets=[self._listener])

    def drain(self) -> None:
        """Accepts no new connection, and ends when the requests in flight are finished."""
        self.should_exit = True
        self._ending.set()

    def give_up(self) -> None:
        """Closes all connections; ends when the requests in flight have noticed."""
        self.should_exit = self.force_exit = True
        self._ending.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves the listener as uvicorn does, with a time limit for TLS handshakes."""
        config = self.config
        server = await asyncio.get_running_loop().create_server(
            self._create_connection,
            sock=self._listener,
            ssl=config.ssl,
            ssl_handshake_timeout=None if config.ssl is None else self._handshake_seconds,
            backlog=_BACKLOG,
        )
        self.servers = [server]
        self.started = True

    def _create_connection(self) -> asyncio.Protocol:
        return self._connection_class(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Installs no signal handlers: `service.app` handles signals."""
        yield

    async def main_loop(self) -> None:
        """Serves until `drain`; uvicorn's own loop would notice that up to 0.1 s later."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), _DATE_SECONDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts the connections that are already established, and waits for their responses."""
        self._limits.closing = True
        stop_accepting_new(self._listener)
        end = time.monotonic() + _LAST_CONNECTIONS_SECONDS
        while has_unread(self._listener) and time.monotonic() < end:
            await asyncio.sleep(_RECHECK_SECONDS)  # libuv accepts one an iteration
        for server in self.servers:
            server.close()
        self._listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        state = self.server_state
        while (state.connections or state.tasks) and not self.force_exit:
            await asyncio.sleep(_RECHECK_SECONDS)
        for connection in list(state.connections):  # their requests end as if the client had left
            connection.transport.abort()
        while state.tasks:
            await asyncio.sleep(_RECHECK_SECONDS)
        self._limits.refusals.close()


def listen(host: str, port: int) -> socket.socket:
    """Binds and listens, so that a port in use is reported before anything is started.

    Args:
        host: an address or a name.
        port: 0 picks a free one.

    Raises:
        OSError: if the port is in use or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)
