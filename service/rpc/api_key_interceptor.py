"""API keys over gRPC: an interceptor that checks the key of a call before its service sees it.

The keys and scopes are those of HTTP. Methods that are not listed here require the scope `detect`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from service.access.api_keys import Forbidden, KeyRing, Scope, Unauthenticated, presented_key

_PUBLIC = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    }
)
_ADMIN = frozenset(
    {
        "/inference.GRPCInferenceService/RepositoryModelLoad",
        "/inference.GRPCInferenceService/RepositoryModelUnload",
    }
)
_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class ApiKeyInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a sufficient key."""

    def __init__(self, keys: KeyRing) -> None:
        """Accepts the keys of this ring."""
        self._keys = keys

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Returns the handler of a call, or one that refuses it."""
        handler = await continuation(handler_call_details)
        required = scope_of_method(handler_call_details.method)
        if handler is None or required is None:
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        try:
            self._keys.check(presented_key(lambda name: _text(metadata.get(name))), required)
        except Unauthenticated as error:
            return _refusing(handler, grpc.StatusCode.UNAUTHENTICATED, str(error))
        except Forbidden as error:
            return _refusing(handler, grpc.StatusCode.PERMISSION_DENIED, str(error))
        return handler


def scope_of_method(method: str) -> Scope | None:
    """The scope that a method requires; None for public methods."""
    if method in _PUBLIC:
        return None
    return Scope.ADMIN if method in _ADMIN else Scope.DETECT


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _refusing(
    handler: grpc.RpcMethodHandler[Any, Any], status: grpc.StatusCode, detail: str
) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of the same kind that refuses the call without reading it."""

    async def refuse(_request: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(status, detail)

    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(refuse)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse)
    return grpc.unary_unary_rpc_method_handler(refuse)
