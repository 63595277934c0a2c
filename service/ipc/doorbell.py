"""The connection between the edge and one engine: a socket pair for `service.ipc.messages`.

Asynchronous on the side of the edge, blocking on that of the engine. If one process dies, the other
reads end of file.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import cast

from service.ipc.messages import (
    LENGTH,
    BadMessage,
    Message,
    check_length,
    decode_message,
    encode_message,
)

_READ_BYTES = 64 * 1024  # many messages in one system call


class MessageReader:
    """Assembles messages from received bytes."""

    def __init__(self) -> None:
        """Creates a reader without bytes."""
        self._bytes = bytearray()

    @property
    def has_bytes(self) -> bool:
        """Whether there are unread bytes, of a whole message or of a part."""
        return bool(self._bytes)

    def feed(self, data: bytes) -> None:
        """Adds received bytes."""
        self._bytes += data

    def take(self) -> Message | None:
        """Returns the next message; None if it is not complete yet.

        Raises:
            BadMessage: for bytes that are not a message.
        """
        if len(self._bytes) < LENGTH.size:
            return None
        end = LENGTH.size + check_length(self._bytes[: LENGTH.size])
        if len(self._bytes) < end:
            return None
        body = bytes(self._bytes[LENGTH.size : end])
        del self._bytes[:end]
        return decode_message(body)


class EdgeDoorbell(asyncio.Protocol):
    """The end of the edge, on its event loop; created by `open`."""

    def __init__(self) -> None:
        """Creates an end without a connection; asyncio calls `connection_made`."""
        self._reader = MessageReader()
        self._received: deque[Message | BadMessage] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._take: Callable[[Message], None] | None = None
        self._transport: asyncio.Transport | None = None
        self._gone = False

    @classmethod
    async def open(cls, end: socket.socket) -> EdgeDoorbell:
        """Takes over one end of a socket pair."""
        end.setblocking(False)
        loop = asyncio.get_running_loop()
        _, doorbell = await loop.create_unix_connection(cls, sock=end)
        return doorbell

    def send(self, message: Message) -> None:
        """Sends a message; it is lost if the engine is gone, and then `receive` returns None."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_message(message))

    async def receive(self) -> Message | None:
        """Waits for a message; returns None once the engine is gone.

        Raises:
            BadMessage: for bytes that are not a message.
        """
        while not self._received and not self._gone:
            await self._wait()
        return self._next() if self._received else None

    async def listen(self, take: Callable[[Message], None]) -> None:
        """Calls `take` with each message, in the callback that received it.

        Returns once the engine is gone.

        Raises:
            BadMessage: for bytes that are not a message.
            Exception: any error of `take`; it is not called again.
        """
        self._take = take
        try:
            self._deliver()
            while not self._gone:
                await self._wait()
        finally:
            self._take = None

    def abort(self) -> None:
        """Closes at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio: keeps the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop has its own class

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with bytes of the engine."""
        self._reader.feed(data)
        try:
            while (message := self._reader.take()) is not None:
                self._received.append(message)
        except BadMessage as error:
            self._received.append(error)
        try:
            self._deliver()
        except Exception as error:  # raised by `listen`
            self._wake_up(error)
        else:
            if self._received:
                self._wake_up()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio when the engine is gone."""
        self._gone = True
        self._wake_up()

    def _deliver(self) -> None:
        while self._take is not None and self._received:
            self._take(self._next())

    def _next(self) -> Message:
        message = self._received.popleft()
        if isinstance(message, BadMessage):
            raise message
        return message

    async def _wait(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake

    def _wake_up(self, error: Exception | None = None) -> None:
        wake, self._wake = self._wake, None
        if wake is None or wake.done():
            return
        if error is None:
            wake.set_result(None)
        else:
            self._take = None
            wake.set_exception(error)


class EngineDoorbell:
    """The end of the engine; one thread receives and one sends."""

    def __init__(self, end: socket.socket) -> None:
        """Takes over one end of a socket pair."""
        end.setblocking(True)
        self._socket = end
        self._reader = MessageReader()

    def send(self, message: Message) -> None:
        """Sends a message.

        Raises:
            OSError: if the edge is gone.
        """
        self._socket.sendall(encode_message(message))

    def receive(self) -> Message | None:
        """Waits for a message; returns None once the edge is gone.

        Raises:
            BadMessage: for bytes that are not a message.
        """
        while (message := self._reader.take()) is None:
            try:
                data = self._socket.recv(_READ_BYTES)
            except OSError:
                return None
            if not data:
                return None
            self._reader.feed(data)
        return message

    def has_message_within(self, seconds: float) -> bool:
        """Waits at most `seconds` for bytes to read; returns whether there are any."""
        if self._reader.has_bytes:
            return True
        ready, _, _ = select.select([self._socket], [], [], seconds)
        return bool(ready)

    def wait_for_edge_exit(self) -> None:
        """Waits until the edge closes its end or dies; reads nothing (another thread may)."""
        watch = select.poll()
        watch.register(self._socket, 0)  # hangups are always reported
        while not watch.poll():
            pass
