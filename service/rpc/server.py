"""The gRPC server: all services, health and reflection on one port, in the edge's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import grpc
from grpc_reflection.v1alpha import reflection

from service.core.detector import Detector
from service.observability.request_log import RequestLog
from service.rpc.api_key_interceptor import ApiKeyInterceptor
from service.rpc.detection import DetectionServicer
from service.rpc.grpc_server import add_service, new_server
from service.rpc.health import HEALTH_SERVICE, ReadinessHealth
from service.rpc.options import RpcOptions
from service.rpc.pb import detection_pb2 as pb
from service.rpc.receive_time import ReceiveTimeInterceptor
from service.rpc.reflection import JoinedPools
from service.transport.grpc_call import GrpcService
from service.transport.grpc_methods import MethodHandlers
from service.transport.http_server import listen

SERVICE: str = pb.DESCRIPTOR.services_by_name["DetectionService"].full_name

ENVELOPE_BYTES = 64 * 1024  # of a message, in addition to its images
_MAX_METADATA_BYTES = 16 * 1024
# Of a call that nothing reads yet, or that is refused unread. gRPC's own estimate grows to many MiB
# of each connection while the event loop is busy. 1 MiB is 10 MiB/s at a round trip of 100 ms, and
# a message that is being read is not bound by it.
_UNREAD_BYTES = 1 << 20
_KEEPALIVE_TIMEOUT_MS = 20_000  # for the reply to a ping; then the connection is closed
_MIN_PING_INTERVAL_MS = 10_000  # clients that ping more often get ENHANCE_YOUR_CALM
_LARGEST_OPTION = 2**31 - 1
# Calls of all methods that wait in gRPC until they are handled; each takes 15 KB, and its metadata.
# gRPC counts them by method, and cancels further calls of any client. Without a number it would do
# so at random from 1000 of a method on.
_MAX_PENDING_CALLS = 20_000
_OTHER_METHODS = 2  # reflection's, and one for all unknown methods
_MIN_STREAMS = 100  # of one connection, as HTTP/2 recommends
# Calls that are queued in gRPC when its server stops end with CANCELLED, which does not say why.
# For this long before, new calls get UNAVAILABLE.
_REFUSING_SECONDS = 0.2
_LAST_RESPONSES_SECONDS = 1.0  # for responses that are being sent
# Calls are cancelled this long after `drain_timeout_seconds`, when `service.app` has counted them.
_COUNTING_SECONDS = 5.0


class _Draining(Protocol):
    """What a stop needs of each service."""

    @property
    def open_calls(self) -> int:
        """The number of calls in flight."""

    def begin_drain(self) -> None:
        """Refuses new images; accepted ones are finished."""

    async def wait_idle(self) -> None:
        """Returns when no call is in flight."""


class RpcServer:
    """The gRPC services of a detector on one port."""

    def __init__(
        self,
        detector: Detector,
        options: RpcOptions,
        request_log: RequestLog | None = None,
        extra_services: Sequence[GrpcService] = (),
    ) -> None:
        """Prepares a server.

        Args:
            detector: the core; shared with the other adapters.
            options: address and limits.
            request_log: follows each call; None: one that neither logs nor traces.
            extra_services: of other adapters, served on the same port.
        """
        self._detector = detector
        self._options = options
        self._port = options.port
        self._request_log = request_log or RequestLog()
        self._servicer = DetectionServicer(detector, options, self._request_log)
        self._extra_services = tuple(extra_services)
        self._names = (SERVICE, *(service.name for service in extra_services))
        self._health = ReadinessHealth(detector, ("", *self._names))
        self._server: grpc.aio.Server | None = None
        self._drain_requested = asyncio.Event()
        self._given_up = asyncio.Event()

    @property
    def port(self) -> int:
        """The port of the running server."""
        return self._port

    @property
    def services(self) -> tuple[str, ...]:
        """The names of the services, without health and reflection."""
        return self._names

    @property
    def open_requests(self) -> int:
        """Calls in flight, health and reflection not counted."""
        return sum(service.open_calls for service in self._draining_services)

    @property
    def _draining_services(self) -> tuple[_Draining, ...]:
        return (self._servicer, *self._extra_services)

    async def start(self) -> None:
        """Listens and serves; the health service reports whether the detector is ready.

        Raises:
            OSError: if the port is in use or not allowed.
            TlsFileError: for certificate files that cannot be used.
        """
        options = self._options
        extra = (service.handlers() for service in self._extra_services)
        services = (detection_handlers(self._servicer), *extra, self._health.handlers())
        num_methods = sum(len(service.handlers) for service in services) + _OTHER_METHODS
        server = new_server(
            self._interceptors(),
            _channel_arguments(options, _MAX_PENDING_CALLS // num_methods),
            options.max_concurrent_calls,
        )
        for handlers in services:
            add_service(server, handlers)
        reflection.enable_server_reflection(
            (*self._names, HEALTH_SERVICE, reflection.SERVICE_NAME),
            server,
            pool=JoinedPools([service.descriptors for service in self._extra_services]),
        )
        host = f"[{options.host}]" if ":" in options.host else options.host
        try:
            address = f"{host}:{options.port}"
            if options.tls is None:
                self._port = server.add_insecure_port(address)
            else:
                self._port = server.add_secure_port(address, options.tls.grpc_credentials())
        except RuntimeError as error:
            listen(options.host, options.port).close()  # raises the reason, which gRPC only logs
            raise OSError("gRPC cannot use the address") from error
        await server.start()
        self._server = server

    def _interceptors(self) -> tuple[grpc.aio.ServerInterceptor, ...]:
        limit, keys = ReceiveTimeInterceptor(self._options.receive_seconds), self._options.keys
        if keys is None:
            return (limit,)
        return (limit, ApiKeyInterceptor(keys, self._detector.metrics, self._request_log))

    async def run_until_drained(self) -> None:
        """Serves until `drain` is called and accepted calls are finished, or `give_up` is."""
        await self._drain_requested.wait()
        await self.stop(self._options.drain_timeout_seconds + _COUNTING_SECONDS)

    def drain(self) -> None:
        """Makes `run_until_drained` stop the server; returns at once."""
        self._drain_requested.set()

    def give_up(self) -> None:
        """Makes `run_until_drained` cancel the calls in flight; returns at once."""
        self._given_up.set()
        self._drain_requested.set()

    async def stop(self, grace_seconds: float) -> None:
        """Refuses new images, and stops when accepted ones are finished.

        Streams end after the frames that were read. Calls without images (health, reflection) do
        not delay it. Does nothing if the server was never started.

        Args:
            grace_seconds: calls that take longer are cancelled.
        """
        if self._server is None:
            return
        services = self._draining_services
        for service in services:
            service.begin_drain()
        self._health.begin_drain()
        refusing_seconds = min(_REFUSING_SECONDS, grace_seconds)
        await asyncio.sleep(refusing_seconds)
        stopped = asyncio.create_task(self._server.stop(grace_seconds - refusing_seconds))
        idle: asyncio.Future[Any] = asyncio.gather(*(service.wait_idle() for service in services))
        given_up = asyncio.create_task(self._given_up.wait())
        any_of: set[asyncio.Future[Any]] = {stopped, idle, given_up}
        await asyncio.wait(any_of, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        if not given_up.done():
            await asyncio.wait(
                {stopped, given_up},
                timeout=_LAST_RESPONSES_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
        given_up.cancel()
        await self._server.stop(None)
        await stopped


def detection_handlers(servicer: DetectionServicer) -> MethodHandlers:
    """The four methods; they take bytes and parse them."""
    one, many = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    return MethodHandlers(
        SERVICE,
        {
            "Detect": one(servicer.detect, None, pb.DetectResponse.SerializeToString),
            "DetectBatch": one(
                servicer.detect_batch, None, pb.DetectBatchResponse.SerializeToString
            ),
            "DetectStream": many(servicer.detect_stream, None, pb.DetectOutcome.SerializeToString),
            "GetModel": one(servicer.get_model, None, pb.GetModelResponse.SerializeToString),
        },
    )


def _channel_arguments(options: RpcOptions, max_pending_calls: int) -> list[tuple[str, int]]:
    """The arguments of gRPC's core; `max_pending_calls` is the limit of each method."""
    max_message = min(options.max_message_bytes + ENVELOPE_BYTES, _LARGEST_OPTION)
    arguments = [
        ("grpc.so_reuseport", 0),  # otherwise a second service could share the port unnoticed
        ("grpc.max_receive_message_length", max_message),
        ("grpc.max_send_message_length", max_message),
        ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _UNREAD_BYTES),
        ("grpc.server.max_pending_requests", max_pending_calls),
        ("grpc.server.max_pending_requests_hard_limit", max_pending_calls),
        # A client queues calls above this; they would be refused otherwise.
        ("grpc.max_concurrent_streams", max(options.max_concurrent_calls, _MIN_STREAMS)),
        # No compressed messages: images are compressed already, and others could inflate to GBs.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        ("grpc.keepalive_time_ms", _milliseconds(options.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
        ("grpc.max_allowed_incoming_connections", options.max_connections),
        ("grpc.max_connection_idle_ms", _milliseconds(options.max_idle_seconds)),
        ("grpc.server_handshake_timeout_ms", _milliseconds(options.handshake_seconds)),
    ]
    if options.max_connection_age_seconds:
        age_ms = _milliseconds(options.max_connection_age_seconds)
        arguments.append(("grpc.max_connection_age_ms", age_ms))
    return arguments


def _milliseconds(seconds: float) -> int:
    return max(1, min(round(seconds * 1000), _LARGEST_OPTION))
