"""The wire between the edge and one engine: a socket pair that carries `service.ipc.messages`.

Async on the edge's side, blocking on the engine's. Either end sees the other die as end of file.
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

_READ_BYTES = 64 * 1024  # many messages: one system call brings all that wait


class MessageReader:
    """Puts messages together from bytes as they come."""

    def __init__(self) -> None:
        """Starts with nothing."""
        self._bytes = bytearray()

    @property
    def has_bytes(self) -> bool:
        """Whether bytes wait here, of a whole message or a part."""
        return bool(self._bytes)

    def feed(self, data: bytes) -> None:
        """Takes bytes in."""
        self._bytes += data

    def take(self) -> Message | None:
        """The next message; None where it is not whole yet.

        Raises:
            BadMessage: for bytes that are no message.
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
    """The edge's end, on its event loop; `open` makes one."""

    def __init__(self) -> None:
        """Starts without a connection, which asyncio brings."""
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
        """Rings; where the engine is gone the message is lost, which `receive` tells."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_message(message))

    async def receive(self) -> Message | None:
        """Waits for a message; None once the engine is gone.

        Raises:
            BadMessage: for bytes that are no message.
        """
        while not self._received and not self._gone:
            await self._be_woken()
        return self._next() if self._received else None

    async def listen(self, take: Callable[[Message], None]) -> None:
        """Hands each message to `take` within the very callback that brings it.

        Returns once the engine is gone.

        Raises:
            BadMessage: for bytes that are no message.
            Exception: whatever `take` raises; it is given nothing more then.
        """
        self._take = take
        try:
            self._deliver()
            while not self._gone:
                await self._be_woken()
        finally:
            self._take = None

    def abort(self) -> None:
        """Closes at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's: keeps the way to the engine."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of another class

    def data_received(self, data: bytes) -> None:
        """Asyncio's: the engine said something."""
        self._reader.feed(data)
        try:
            while (message := self._reader.take()) is not None:
                self._received.append(message)
        except BadMessage as error:
            self._received.append(error)
        try:
            self._deliver()
        except Exception as error:  # for `listen` to raise
            self._awake(error)
        else:
            if self._received:
                self._awake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's: the engine is gone."""
        self._gone = True
        self._awake()

    def _deliver(self) -> None:
        while self._take is not None and self._received:
            self._take(self._next())

    def _next(self) -> Message:
        message = self._received.popleft()
        if isinstance(message, BadMessage):
            raise message
        return message

    async def _be_woken(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake

    def _awake(self, error: Exception | None = None) -> None:
        wake, self._wake = self._wake, None
        if wake is None or wake.done():
            return
        if error is None:
            wake.set_result(None)
        else:
            self._take = None
            wake.set_exception(error)


class EngineDoorbell:
    """The engine's end: one thread receives, one sends."""

    def __init__(self, end: socket.socket) -> None:
        """Takes over one end of a socket pair."""
        end.setblocking(True)
        self._socket = end
        self._reader = MessageReader()

    def send(self, message: Message) -> None:
        """Sends a message.

        Raises:
            OSError: where the edge is gone.
        """
        self._socket.sendall(encode_message(message))

    def receive(self) -> Message | None:
        """Waits for a message; None once the edge is gone.

        Raises:
            BadMessage: for bytes that are no message.
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
        """Whether `receive` would have something to read, waiting for it so long at most."""
        if self._reader.has_bytes:
            return True
        ready, _, _ = select.select([self._socket], [], [], seconds)
        return bool(ready)

    def wait_for_edge_exit(self) -> None:
        """Returns when the edge has closed its end or died; reads nothing (another thread may)."""
        watch = select.poll()
        watch.register(self._socket, 0)  # a hangup is told unasked
        while not watch.poll():
            pass
