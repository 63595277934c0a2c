"""The wire between the edge and one engine: a socket pair that carries `service.messages`.

Async on the edge's side, blocking on the engine's. Either end sees the other die as end of file.
"""

from __future__ import annotations

import asyncio
import socket

from service.messages import LENGTH, Message, check_length, decode_message, encode_message


class EdgeDoorbell:
    """The edge's end, on its event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes the two streams of one end; `open` makes them."""
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> EdgeDoorbell:
        """Takes over one end of a socket pair."""
        end.setblocking(False)
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: Message) -> None:
        """Rings; where the engine is gone the message is lost, which `receive` tells."""
        if not self._writer.is_closing():
            self._writer.write(encode_message(message))

    async def receive(self) -> Message | None:
        """Waits for a message; None once the engine is gone.

        Raises:
            BadMessage: for bytes that are no message.
        """
        try:
            prefix = await self._reader.readexactly(LENGTH.size)
            return decode_message(await self._reader.readexactly(check_length(prefix)))
        except (asyncio.IncompleteReadError, OSError):
            return None

    def abort(self) -> None:
        """Closes at once."""
        self._writer.transport.abort()


class EngineDoorbell:
    """The engine's end: one thread receives, one sends."""

    def __init__(self, end: socket.socket) -> None:
        """Takes over one end of a socket pair."""
        end.setblocking(True)
        self._socket = end

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
        prefix = self._read_exactly(LENGTH.size)
        body = None if prefix is None else self._read_exactly(check_length(prefix))
        return None if body is None else decode_message(body)

    def _read_exactly(self, count: int) -> bytes | None:
        parts = bytearray()
        while len(parts) < count:
            try:
                part = self._socket.recv(count - len(parts))
            except OSError:
                return None
            if not part:
                return None
            parts += part
        return bytes(parts)
