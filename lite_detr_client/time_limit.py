"""Limits the time of a synchronous HTTP call.

HttpClient -> httpx -> httpcore -> the streams of this module -> sockets

httpx limits each phase of a request by itself, and httpcore each read and each write, so that a
server that sends a byte now and then is waited for without end. The streams of this module shorten
every such wait to what remains of the time of the call, which is kept in a context variable: a
synchronous call runs in one thread. The asynchronous client needs none of this, as asyncio can
cancel it.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

# Written at once. Small, as a write of httpcore waits for the full timeout whenever a part of its
# data was sent.
_WRITE_BYTES = 16 << 10

_deadline: ContextVar[float | None] = ContextVar("lite_detr_client_deadline", default=None)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Limits the calls inside, of this thread and of clients with `limit_connections`.

    Args:
        seconds: for all of them together; None: no limit.
    """
    token = _deadline.set(None if seconds is None else time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def limit_connections(client: httpx.Client) -> bool:
    """Makes the connections of a client, also those through proxies, keep `time_limit`.

    httpx has no public parameter for this. A transport that is not based on httpcore is left as it
    is: its own timeouts apply.

    Returns:
        Whether all transports of the client keep the limit.
    """
    transports = [
        getattr(client, "_transport", None),
        *(each for each in getattr(client, "_mounts", {}).values() if each is not None),
    ]
    return all([_limit(transport) for transport in transports])


def _limit(transport: object) -> bool:
    pool: Any = getattr(transport, "_pool", None)
    backend = getattr(pool, "_network_backend", None)
    if not isinstance(backend, httpcore.NetworkBackend):
        return False
    if not isinstance(backend, _Backend):  # a transport may be shared by several clients
        pool._network_backend = _Backend(backend)
    return True


class _Backend(httpcore.NetworkBackend):
    """Opens streams that keep the time limit."""

    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connects to the first address of the host that accepts the connection.

        Each address gets an equal share of the remaining time; without a limit, httpcore's timeout.
        """
        if _deadline.get() is None:
            addresses = [host]
        else:
            addresses = _resolve(host, port, _remaining(timeout, httpcore.ConnectTimeout))
        for left in range(len(addresses), 0, -1):
            limit = _remaining(timeout, httpcore.ConnectTimeout)
            try:
                stream = self._backend.connect_tcp(
                    addresses[-left],
                    port,
                    None if limit is None else limit / left,
                    local_address,
                    socket_options,
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if left == 1:
                    raise
            else:
                return _Stream(stream)
        raise httpcore.ConnectError(f"{host} has no address")

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connects to a socket of this machine."""
        limit = _remaining(timeout, httpcore.ConnectTimeout)
        return _Stream(self._backend.connect_unix_socket(path, limit, socket_options))

    def sleep(self, seconds: float) -> None:
        """Waits between two attempts to connect."""
        self._backend.sleep(_remaining(seconds, httpcore.ConnectTimeout) or 0.0)


class _Stream(httpcore.NetworkStream):
    """A connection whose waits are shortened to the remaining time."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Reads what has arrived."""
        return self._stream.read(max_bytes, _remaining(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Writes all bytes, a few at a time."""
        for start in range(0, len(buffer), _WRITE_BYTES):
            part = buffer[start : start + _WRITE_BYTES]
            self._stream.write(part, _remaining(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        """Closes the connection."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Returns the stream inside TLS."""
        limit = _remaining(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, limit))

    def get_extra_info(self, info: str) -> Any:
        """Returns what httpcore asks about the connection."""
        return self._stream.get_extra_info(info)


def _remaining(timeout: float | None, error: type[httpcore.TimeoutException]) -> float | None:
    """Returns the seconds that a wait may take: `timeout`, or less.

    Raises:
        TimeoutException: `error`, if no time remains.
    """
    deadline = _deadline.get()
    if deadline is None:
        return timeout
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise error("the time of the call has passed")
    return remaining if timeout is None else min(timeout, remaining)


def _resolve(host: str, port: int, timeout: float | None) -> list[str]:
    """Returns the addresses of a host, at least one.

    Args:
        host: a name or an address.
        port: to which a connection will be opened.
        timeout: in seconds. The resolver of the system knows none, so it runs in a thread.

    Raises:
        ConnectError: if the host is unknown.
        ConnectTimeout: if its addresses are not found in time.
    """
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass  # a name
    outcomes: queue.Queue[list[str] | Exception] = queue.Queue(1)

    def resolve() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            outcomes.put(list(dict.fromkeys(str(entry[4][0]) for entry in found)))
        except Exception as error:  # raised in the thread of the call
            outcomes.put(error)

    threading.Thread(target=resolve, daemon=True, name="lite-detr-client-resolver").start()
    try:
        outcome = outcomes.get(timeout=timeout)
    except queue.Empty:
        raise httpcore.ConnectTimeout(f"the address of {host} was not found in time") from None
    if isinstance(outcome, Exception):
        raise httpcore.ConnectError(str(outcome)) from outcome
    return outcome
