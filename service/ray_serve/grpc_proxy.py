"""The gRPC methods of Ray's proxies: each forwards its calls to a replica.

client -> ForwardedService -> Ray's router -> ReplicaMethods

Ray's gRPC proxy calls `add_services` with its server, which replaces the function of each handler
by one that sends the request to a replica. Around that function, `ForwardedService` adds what Ray
does not pass on (the deadline), and retries calls whose replica ended: a detection changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2

from service.oip.pb import grpc_service_pb2
from service.ray_serve.grpc_methods import CallOutcome, ForwardedCall
from service.ray_serve.retries import ATTEMPTS, pause_after
from service.rpc.pb import detection_pb2
from service.transport.grpc_status import CODE_KEY, RETRY_DELAY_KEY

IMPORT_PATH = "service.ray_serve.grpc_proxy.add_services"
_LOST = "replicas ended while they handled the call; try again later"
_LOST_METADATA = ((CODE_KEY, "replica_lost"), (RETRY_DELAY_KEY, "1000"))
_NO_STREAMS = "streams are not available with Ray Serve; use the unary methods"
# Ray's errors that do not depend on the replica, such as an unknown application.
_FINAL = frozenset({grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DEADLINE_EXCEEDED})

_log = structlog.get_logger(__name__)

RayFunction = Callable[[ForwardedCall, Any], Awaitable[bytes | None]]


def services() -> Mapping[str, Mapping[str, bool]]:
    """The services with their methods; the value of a method is whether it streams."""
    described = [
        detection_pb2.DESCRIPTOR.services_by_name["DetectionService"],
        grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
        health_pb2.DESCRIPTOR.services_by_name["Health"],
    ]
    return {
        service.full_name: {
            method.name: method.client_streaming or method.server_streaming
            for method in service.methods
        }
        for service in described
    }


def unary_methods() -> list[str]:
    """The names of the methods that are forwarded; no two services have the same."""
    return [
        name for methods in services().values() for name, streams in methods.items() if not streams
    ]


def add_services(_servicer: object, server: Any) -> None:
    """Adds all services to the server of Ray's proxy."""
    for name, methods in services().items():
        server.add_generic_rpc_handlers((ForwardedService(name, methods),))


class ForwardedService(grpc.GenericRpcHandler):
    """The handlers of one service."""

    def __init__(self, service: str, methods: Mapping[str, bool]) -> None:
        """Prepares the handlers.

        Args:
            service: full name.
            methods: whether each method streams.
        """
        unary = [f"/{service}/{name}" for name, streams in methods.items() if not streams]
        self._streams = {f"/{service}/{name}" for name, streams in methods.items() if streams}
        # Ray replaces each function; the attribute has the name that Ray reads.
        self._method_handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            path: grpc.unary_unary_rpc_method_handler(_not_replaced) for path in unary
        }

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call; None for other methods."""
        method = handler_call_details.method
        if method in self._streams:
            return grpc.stream_stream_rpc_method_handler(_refuse_stream)
        handler = self._method_handlers.get(method)
        if handler is None:
            return None
        forward: Any = handler.unary_unary

        async def respond(data: bytes, context: Any) -> bytes:
            return await _respond(forward, method, data, context)

        return grpc.unary_unary_rpc_method_handler(respond)


class _RecordedContext:
    """gRPC's context for Ray: what Ray sets is recorded, as it may be that of a lost call."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._code: Any = None
        self._details = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def code(self) -> Any:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[()]:
        return ()

    def set_code(self, code: Any) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        self._details = details

    def set_trailing_metadata(self, metadata: object) -> None:
        """Ignores Ray's own request id."""


async def _respond(forward: RayFunction, method: str, data: bytes, context: Any) -> bytes:
    """Sends a call to replicas until one responds, and returns its response."""
    left = context.time_remaining()
    deadline = None if left is None else time.monotonic() + left
    for attempt in ATTEMPTS:
        seconds_left = None if deadline is None else deadline - time.monotonic()
        metadata = tuple((key, value) for key, value in context.invocation_metadata() or ())
        call = ForwardedCall(method, data, metadata, context.peer() or "", seconds_left)
        recorded = _RecordedContext(context)
        result = await forward(call, recorded)
        if result:
            return await _finish(CallOutcome.from_bytes(result), context)
        if recorded.code() in _FINAL:
            await context.abort(recorded.code(), recorded.details())
        _log.warning("retrying a lost call", attempt=attempt, status=str(recorded.code()))
        await pause_after(attempt)
    await context.abort(grpc.StatusCode.UNAVAILABLE, _LOST, _LOST_METADATA)
    return b""


async def _finish(outcome: CallOutcome, context: Any) -> bytes:
    """Ends a call as the replica decided."""
    code = grpc.StatusCode[outcome.status]
    if code is not grpc.StatusCode.OK:
        await context.abort(code, outcome.detail, outcome.metadata)
    context.set_trailing_metadata(outcome.metadata)
    return outcome.data


async def _refuse_stream(_requests: object, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, _NO_STREAMS)


async def _not_replaced(_data: bytes, context: Any) -> None:
    """The function of a handler before Ray replaces it."""
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Ray Serve does not forward this method")
