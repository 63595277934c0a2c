"""One replica: a detector with its engine, as an ASGI application and as gRPC methods.

Ray's proxy -> Replica -> the routes and gRPC services of `lite-detr serve` -> Detector

The lifespan of the ASGI application is that of the detector: the startup ends when the engine is
ready, the shutdown finishes accepted requests. This module does not import Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.access import Access
from service.build import TORCH, Backend, ServiceCore, open_core
from service.images.allocator import keep_freed_memory
from service.observability.logs import configure_logs
from service.observability.request_log import open_request_log
from service.oip import InferenceService
from service.ray_serve.grpc_methods import ReplicaMethods
from service.ray_serve.proxy import REPLICA_HEADER
from service.rpc import RpcOptions
from service.rpc.detection import DetectionServicer
from service.rpc.health import ReadinessHealth
from service.rpc.server import ENVELOPE_BYTES, SERVICE, detection_handlers
from service.servers import build_app
from service.settings import Settings

_log = structlog.get_logger(__name__)


class NotLive(RuntimeError):
    """Only a new replica can help; the message is the reason."""


class Replica:
    """The service of one replica."""

    def __init__(self, settings: Settings, backend: Backend = TORCH, name: str = "") -> None:
        """Prepares a replica, which `start` starts.

        Args:
            settings: of a replica.
            backend: which device the engine opens.
            name: of the replica, for log lines.
        """
        self._settings = settings
        self._backend = backend
        self._name = name
        self._stack: AsyncExitStack | None = None
        self._app: ASGIApp | None = None
        self._core: ServiceCore | None = None
        self._methods: ReplicaMethods | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request, or the lifespan of the application."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        assert self._app is not None, "requests come after the startup"

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (REPLICA_HEADER, b"1")]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_marked)

    async def start(self) -> None:
        """Starts the engine and waits until it is ready.

        Raises:
            CheckpointError: for a model that does not exist or cannot be used.
            EngineStartError: if the engine cannot start.
            KeyFileError: for API keys that cannot be used.
            TracingUnavailable: if tracing is configured but not installed.
        """
        settings = self._settings
        keep_freed_memory()
        access, request_log = Access(settings), open_request_log(settings)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.to_thread, request_log.close)
            core = await stack.enter_async_context(open_core(settings, self._backend))
            stack.callback(asyncio.create_task(access.watch()).cancel)
            self._app = build_app(settings, access, core, request_log, None)
            oip = InferenceService(core.detector, core.control, settings, request_log)
            options = RpcOptions(
                host=settings.host,
                port=settings.grpc_port,
                max_message_bytes=settings.max_body_bytes,
                max_image_pixels=settings.max_image_pixels,
                max_images=settings.max_files,
                max_tiles=settings.max_tiles,
            )
            detection = DetectionServicer(core.detector, options, request_log)
            health = ReadinessHealth(core.detector, ("", SERVICE, oip.name))
            self._methods = ReplicaMethods(
                [detection_handlers(detection), oip.handlers(), health.handlers()],
                access.keys,
                core.detector.metrics,
                request_log,
                options.max_message_bytes + ENVELOPE_BYTES,
            )
            await core.first_ready
            self._core = core
            self._stack = stack.pop_all()
        gc.collect()
        gc.freeze()
        _log.info("replica ready", replica=self._name, model=core.detector.model.name)

    async def stop(self) -> None:
        """Finishes accepted requests and stops the engine; does nothing if it is not running."""
        stack, core, self._stack = self._stack, self._core, None
        if stack is None or core is None:
            return
        dropped = await core.detector.drain(self._settings.drain_timeout_seconds)
        await stack.aclose()
        if dropped:
            _log.error("replica stopped too late for some requests", dropped=dropped)
        else:
            _log.info("replica stopped; all accepted requests were completed", replica=self._name)

    def check_health(self) -> None:
        """Checks the liveness of the service.

        Raises:
            NotLive: if only a new replica can help.
        """
        if self._core is None or not self._core.detector.live:
            raise NotLive("the engine fails repeatedly")

    @property
    def active(self) -> int:
        """Images in flight."""
        return 0 if self._core is None else self._core.detector.active

    @property
    def methods(self) -> ReplicaMethods:
        """The gRPC methods."""
        assert self._methods is not None, "calls come after the startup"
        return self._methods

    async def _live(self, receive: Receive, send: Send) -> None:
        """Handles the messages of the lifespan."""
        message: Mapping[str, Any] = await receive()
        assert message["type"] == "lifespan.startup"
        try:
            await self.start()
        except Exception as error:
            _log.critical("the replica cannot start", error=str(error), exc_info=True)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        with contextlib.suppress(asyncio.CancelledError):
            await receive()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})


def open_replica(settings: Settings, backend: Backend, name: str) -> Replica:
    """Returns a replica in a process of its own, whose logs are those of the service.

    Args:
        settings: of a replica.
        backend: which device the engine opens.
        name: of the replica, for log lines.
    """
    configure_logs(settings.log_level, settings.log_format)
    return Replica(settings, backend, name)
