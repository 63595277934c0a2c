"""API keys over gRPC: an interceptor that asks for a key before a call reaches its service.

The same keys and scopes as over HTTP; whatever is not listed here needs the scope `detect`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from service.access.api_keys import Forbidden, KeyRing, Scope, Unauthenticated, presented_key

_OPEN = frozenset(
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
    """Lets through calls that show a key which opens them."""

    def __init__(self, keys: KeyRing) -> None:
        """Asks for keys of this ring."""
        self._keys = keys

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Finds the handler of a call, or one that refuses it."""
        handler = await continuation(handler_call_details)
        needed = scope_needed(handler_call_details.method)
        if handler is None or needed is None:
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        try:
            self._keys.check(presented_key(lambda name: _text(metadata.get(name))), needed)
        except Unauthenticated as error:
            return _refusing(handler, grpc.StatusCode.UNAUTHENTICATED, str(error))
        except Forbidden as error:
            return _refusing(handler, grpc.StatusCode.PERMISSION_DENIED, str(error))
        return handler


def scope_needed(method: str) -> Scope | None:
    """What a key must open for a method; None where none is needed."""
    if method in _OPEN:
        return None
    return Scope.ADMIN if method in _ADMIN else Scope.DETECT


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _refusing(
    handler: grpc.RpcMethodHandler[Any, Any], status: grpc.StatusCode, detail: str
) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of the same shape that reads nothing and refuses."""

    async def refuse(_request: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(status, detail)

    if handler.request_streaming and handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse)
    if handler.request_streaming:
        return grpc.stream_unary_rpc_method_handler(refuse)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse)
    return grpc.unary_unary_rpc_method_handler(refuse)
