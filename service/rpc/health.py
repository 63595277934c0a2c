"""grpc.health.v1, following the Detector's readiness.

Check tells the state of this very moment. Watch looks again and again: readiness belongs to the
engines and has no event of its own. Unlike the library's servicer it ends its streams when the
server drains, so that a balancer that watches does not hold the drain up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2

from service.core.detector import Detector
from service.transport.grpc_call import Context

HEALTH_SERVICE = "grpc.health.v1.Health"
_WATCH_SECONDS = 0.25  # between two looks


class ReadinessHealth:
    """Handles Check and Watch."""

    def __init__(
        self, detector: Detector, services: tuple[str, ...], watch_seconds: float = _WATCH_SECONDS
    ) -> None:
        """Answers for some services, all of which are as ready as the detector.

        Args:
            detector: whose readiness it is.
            services: full names; "" stands for the server as a whole.
            watch_seconds: between two looks of a watcher.
        """
        self._detector = detector
        self._services = services
        self._watch_seconds = watch_seconds
        self._draining = asyncio.Event()

    def handlers(self) -> grpc.GenericRpcHandler:
        """For the server."""
        read = health_pb2.HealthCheckRequest.FromString
        write = health_pb2.HealthCheckResponse.SerializeToString
        return grpc.method_handlers_generic_handler(
            HEALTH_SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self.check, read, write),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch, read, write),
            },
        )

    def begin_drain(self) -> None:
        """Not serving from now on; watchers are told so, and their streams end."""
        self._draining.set()

    async def check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Tells the state of one service; NOT_FOUND for one that is not here."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def watch(
        self, request: health_pb2.HealthCheckRequest, _context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Tells the state of one service now and whenever it changes."""
        told = None
        while True:
            draining = self._draining.is_set()
            status = self._status(request.service)
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            if draining:
                return
            try:
                async with asyncio.timeout(self._watch_seconds):
                    await self._draining.wait()
            except TimeoutError:
                continue

    def _status(self, service: str) -> int:
        if service not in self._services:
            return int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        if self._draining.is_set() or not self._detector.ready:
            return int(health_pb2.HealthCheckResponse.NOT_SERVING)
        return int(health_pb2.HealthCheckResponse.SERVING)
