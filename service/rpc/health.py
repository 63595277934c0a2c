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
from collections.abc import AsyncGenerator

import grpc
from grpc_health.v1 import health_pb2

from service.core.detector import Detector
from service.transport.grpc_call import Context, parse_message
from service.transport.grpc_methods import MethodHandlers
from service.transport.grpc_status import MalformedMessage, refusal_of

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
        """The handlers of both methods; they take bytes and parse them."""
        write = health_pb2.HealthCheckResponse.SerializeToString

        async def check(data: bytes, context: Context) -> health_pb2.HealthCheckResponse:
            return await self.check(await _parsed(data, context), context)

        async def watch(
            data: bytes, context: Context
        ) -> AsyncGenerator[health_pb2.HealthCheckResponse]:
            request = await _parsed(data, context)
            async with contextlib.aclosing(self.watch(request, context)) as states:
                async for state in states:
                    yield state

        return MethodHandlers(
            HEALTH_SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(check, None, write),
                "Watch": grpc.unary_stream_rpc_method_handler(watch, None, write),
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
    ) -> AsyncGenerator[health_pb2.HealthCheckResponse]:
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


async def _parsed(data: bytes, context: Context) -> health_pb2.HealthCheckRequest:
    """The message of a request; aborts the call for bytes that are none."""
    try:
        return parse_message(health_pb2.HealthCheckRequest, data)
    except MalformedMessage as error:
        refusal = refusal_of(error)
    await context.abort(refusal.status, refusal.detail, refusal.metadata)
