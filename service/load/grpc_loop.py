"""The same as `loop` over gRPC: scheduled calls of Detect; each ends in an Exchange."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from service.load.loop import Exchange

DETECT = "/litedetr.v1.DetectionService/Detect"
_CHANNELS = 8  # a connection each; a server limits the calls of one
_GRACE_SECONDS = 10.0  # for calls in flight at the end
# Of a channel. A proxy is not used, as over HTTP: what it takes would be measured, too.
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]


class GrpcLoad:
    """Sends calls and collects the exchanges, on one event loop."""

    def __init__(
        self,
        address: str,
        requests: Sequence[bytes],
        metadata: Sequence[tuple[str, str]] = (),
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Creates channels, which connect with the first call.

        Args:
            address: host and port.
            requests: serialized DetectRequest messages; sent in this order, repeatedly.
            metadata: of each call.
            credentials: for TLS; None: without.
        """
        options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        self._channels = [
            grpc.aio.insecure_channel(address, options)
            if credentials is None
            else grpc.aio.secure_channel(address, credentials, options)
            for _ in range(_CHANNELS)
        ]
        self._calls: list[Any] = [channel.unary_unary(DETECT) for channel in self._channels]
        self._requests = requests
        self._metadata = tuple(metadata)
        self._tasks: set[asyncio.Task[None]] = set()
        self.exchanges: list[Exchange] = []

    async def run_open(self, starts: Sequence[float]) -> None:
        """Sends one call at each of these times (seconds from now); waits for the responses."""
        begin = time.perf_counter()
        for number, start in enumerate(starts):
            wait = begin + start - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            exchange = Exchange(number % len(self._requests), begin + start)
            self.exchanges.append(exchange)
            task = asyncio.ensure_future(self._call(number % _CHANNELS, exchange))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_GRACE_SECONDS)

    async def close(self) -> None:
        """Cancels the calls in flight and closes the channels."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def _call(self, channel: int, exchange: Exchange) -> None:
        exchange.sent = time.perf_counter()
        try:
            await self._calls[channel](self._requests[exchange.image], metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            exchange.error = error.code().name
        exchange.done = time.perf_counter()
