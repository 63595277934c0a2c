"""The gRPC server with the life of the HTTP ones: it runs until it is asked to drain."""

from __future__ import annotations

import asyncio

from service.rpc.server import RpcServer


class RpcDoor:
    """A started `RpcServer` that the composition root can treat as any other server."""

    def __init__(self, server: RpcServer, drain_timeout_seconds: float) -> None:
        """Takes over a server.

        Args:
            server: started.
            drain_timeout_seconds: given to accepted calls when it drains.
        """
        self._server = server
        self._drain_timeout_seconds = drain_timeout_seconds
        self._asked = asyncio.Event()

    async def run_until_drained(self) -> None:
        """Serves until `drain` is called, then until accepted calls are answered."""
        await self._asked.wait()
        await self._server.stop(self._drain_timeout_seconds)

    def drain(self) -> None:
        """Asks for the end; returns at once."""
        self._asked.set()

    def give_up(self) -> None:
        """Nothing beyond `drain`: gRPC ends what is left when the drain's time is over."""
        self._asked.set()
