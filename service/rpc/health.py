"""grpc.health.v1 with the Detector's readiness.

Check returns the current state. Watch polls it, once for all streams: readiness depends on the
engines and has no event. The number of streams is limited, so that clients without a key cannot use
up the calls that the server allows.
Unlike the library's servicer it ends its streams when the server drains, so that a load balancer
that watches does not delay the drain.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2

from service.core.detector import Detector
from service.transport.grpc_call import Context
from service.transport.grpc_methods import MethodHandlers

HEALTH_SERVICE = "grpc.health.v1.Health"
_POLL_SECONDS = 0.25
_MAX_WATCHES = 64


class ReadinessHealth:
    """Handles Check and Watch."""

    def __init__(
        self, detector: Detector, services: tuple[str, ...], poll_seconds: float = _POLL_SECONDS
    ) -> None:
        """Reports the readiness of the detector for some services.

        Args:
            detector: its readiness is that of the services.
            services: full names; "" stands for the whole server.
            poll_seconds: how often Watch polls.
        """
        self._detector = detector
        self._services = services
        self._poll_seconds = poll_seconds
        self._draining = asyncio.Event()
        self._changed = asyncio.Condition()
        self._num_watches = 0
        self._poller: asyncio.Task[None] | None = None

    def handlers(self) -> MethodHandlers:
        """The handlers of both methods."""
        read = health_pb2.HealthCheckRequest.FromString
        write = health_pb2.HealthCheckResponse.SerializeToString
        return MethodHandlers(
            HEALTH_SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self.check, read, write),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch, read, write),
            },
        )

    def begin_drain(self) -> None:
        """Reports NOT_SERVING from now on, and ends the streams of Watch."""
        self._draining.set()

    async def check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Returns the state of one service; NOT_FOUND for an unknown one."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yields the state of one service now and whenever it changes."""
        if self._num_watches >= _MAX_WATCHES:
            detail = f"{_MAX_WATCHES} clients watch already; use Check"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, detail)
        self._num_watches += 1
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        try:
            sent = None
            while True:
                draining = self._draining.is_set()
                status = self._status(request.service)
                if status != sent:
                    yield health_pb2.HealthCheckResponse(status=status)
                    sent = status
                if draining:
                    return
                async with self._changed:
                    if self._status(request.service) == sent and not self._draining.is_set():
                        await self._changed.wait()
        finally:
            self._num_watches -= 1

    async def _poll(self) -> None:
        """Wakes the watching streams when the readiness changes; ends with the last of them."""
        before = self._status("")
        while self._num_watches:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_seconds):
                    await self._draining.wait()
            status = self._status("")
            if status != before or self._draining.is_set():
                before = status
                async with self._changed:
                    self._changed.notify_all()
            if self._draining.is_set():
                break
        self._poller = None

    def _status(self, service: str) -> int:
        if service not in self._services:
            return int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        if self._draining.is_set() or not self._detector.ready:
            return int(health_pb2.HealthCheckResponse.NOT_SERVING)
        return int(health_pb2.HealthCheckResponse.SERVING)
