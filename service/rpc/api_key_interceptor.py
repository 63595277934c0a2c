"""API keys over gRPC: an interceptor that checks the key of a call before its service sees it.

The keys and scopes are those of HTTP. A method that is not listed here requires the scope `admin`.
A call is refused by its metadata: its messages are not read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import grpc
import structlog

from service.access.api_keys import Forbidden, KeyRing, Scope, Unauthenticated, presented_key
from service.observability.metrics import Metrics
from service.observability.request_log import RequestLog
from service.rpc.receive_time import PUBLIC_METHODS
from service.transport.grpc_call import Context, open_call

_DETECT = frozenset(
    (
        *(
            f"/litedetr.v1.DetectionService/{name}"
            for name in ("Detect", "DetectBatch", "DetectStream", "GetModel")
        ),
        *(
            f"/inference.GRPCInferenceService/{name}"
            for name in (
                "ModelConfig",
                "ModelInfer",
                "ModelMetadata",
                "ModelReady",
                "ModelStatistics",
                "ModelStreamInfer",
                "RepositoryIndex",
                "ServerMetadata",
            )
        ),
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    )
)
_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class ApiKeyInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a sufficient key."""

    def __init__(self, keys: KeyRing, metrics: Metrics, request_log: RequestLog) -> None:
        """Prepares an interceptor.

        Args:
            keys: the accepted keys.
            metrics: count the refused calls.
            request_log: logs the refused calls.
        """
        self._keys = keys
        self._metrics = metrics
        self._request_log = request_log

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Returns the handler of a call, or one that refuses it."""
        handler = await continuation(handler_call_details)
        required = scope_of_method(handler_call_details.method)
        if handler is None or required is None:
            return handler
        metadata = handler_call_details.invocation_metadata or ()
        try:
            key = self._keys.check(presented_key(partial(_first_text, metadata)), required)
        except Unauthenticated as error:
            code, status, detail = "unauthenticated", grpc.StatusCode.UNAUTHENTICATED, str(error)
        except Forbidden as error:
            code, status, detail = "forbidden", grpc.StatusCode.PERMISSION_DENIED, str(error)
        else:
            structlog.contextvars.bind_contextvars(api_key=key.name)  # each call has its own task
            return handler
        self._metrics.keys_refused.labels("grpc", code).inc()
        method = handler_call_details.method.lstrip("/")

        async def refuse(_requests: object, context: Context) -> None:
            with open_call(context, self._request_log, method) as call:
                call.scope.status = status.name
                call.scope.record_failure(code, detail)
            await context.abort(status, detail)

        # Of a unary call, too: gRPC reads the message of a unary handler before it runs.
        return grpc.stream_stream_rpc_method_handler(refuse)


def scope_of_method(method: str) -> Scope | None:
    """The scope that a method requires; None for public methods."""
    if method in PUBLIC_METHODS:
        return None
    return Scope.DETECT if method in _DETECT else Scope.ADMIN


def _first_text(metadata: Iterable[tuple[str, str | bytes]], name: str) -> str | None:
    """The first value of a name, as over HTTP; None if there is none, or if it is binary."""
    value = next((value for key, value in metadata if key == name), None)
    return value if isinstance(value, str) else None
