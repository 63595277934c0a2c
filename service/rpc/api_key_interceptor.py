"""API keys over gRPC: an interceptor that checks the key of a call before its service sees it.

The keys and scopes are those of HTTP. A method that is not listed here requires the scope `admin`.
A call is refused by its metadata: its messages are not read. A stream is checked again with the
first message after the keys have changed.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class KeyRefusal:
    """Why a call is refused."""

    code: str  # stable, for programs
    status: grpc.StatusCode
    detail: str  # for people


_Metadata = Iterable[tuple[str, str | bytes]]
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
        if handler is None:
            return handler
        method = handler_call_details.method
        metadata = handler_call_details.invocation_metadata or ()
        generation = self._keys.generation
        refusal = check_call(self._keys, method, metadata)
        if refusal is None:
            if not (handler.request_streaming and handler.response_streaming):
                return handler
            return self._checked_again(handler, method, metadata, generation)

        async def refuse(_requests: object, context: Context) -> None:
            await self._refuse(context, method, refusal)

        # Of a unary call, too: gRPC reads the message of a unary handler before it runs.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _checked_again(
        self, handler: Any, method: str, metadata: _Metadata, generation: int
    ) -> Any:
        """The handler of a stream that ends when its key is not accepted any more.

        Messages that were read before get their responses.
        """

        def check() -> KeyRefusal | None:
            nonlocal generation
            if generation == self._keys.generation:
                return None
            generation = self._keys.generation
            return check_call(self._keys, method, metadata)

        async def respond(requests: AsyncIterator[Any], context: Context) -> None:
            checked = _CheckedRequests(requests, check)
            await handler.stream_stream(checked, context)
            if checked.refusal is not None:
                await self._refuse(context, method, checked.refusal)

        async def generate(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            checked = _CheckedRequests(requests, check)
            async for response in handler.stream_stream(checked, context):
                yield response
            if checked.refusal is not None:
                await self._refuse(context, method, checked.refusal)

        generates = inspect.isasyncgenfunction(handler.stream_stream)
        return grpc.stream_stream_rpc_method_handler(
            generate if generates else respond,
            handler.request_deserializer,
            handler.response_serializer,
        )

    async def _refuse(self, context: Context, method: str, refusal: KeyRefusal) -> None:
        """Ends a call."""
        self._metrics.keys_refused.labels("grpc", refusal.code).inc()
        log_refused_call(context, self._request_log, method, refusal)
        await context.abort(refusal.status, refusal.detail)


class _CheckedRequests:
    """The messages of a stream, up to the first for which the key is not accepted.

    Attributes:
        refusal: why the messages ended; None if the client ended them.
    """

    def __init__(
        self, requests: AsyncIterator[Any], check: Callable[[], KeyRefusal | None]
    ) -> None:
        self._requests = requests
        self._iterator: AsyncIterator[Any] | None = None
        self._check = check
        self.refusal: KeyRefusal | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        """Returns itself."""
        return self

    async def __anext__(self) -> Any:
        """Returns the next message."""
        if self._iterator is None:  # gRPC's iterator must not be created and left unused
            self._iterator = aiter(self._requests)
        request = await anext(self._iterator)
        self.refusal = self._check()
        if self.refusal is not None:
            raise StopAsyncIteration
        return request


def check_call(keys: KeyRing, method: str, metadata: _Metadata) -> KeyRefusal | None:
    """Checks the key of a call; the name of one that suffices is bound to the call's log lines.

    Args:
        keys: the accepted keys.
        method: full name with a leading slash.
        metadata: of the call.

    Returns:
        None if the call is allowed.
    """
    required = scope_of_method(method)
    if required is None:
        return None
    try:
        key = keys.check(presented_key(partial(_first_text, metadata)), required)
    except Unauthenticated as error:
        return KeyRefusal("unauthenticated", grpc.StatusCode.UNAUTHENTICATED, str(error))
    except Forbidden as error:
        return KeyRefusal("forbidden", grpc.StatusCode.PERMISSION_DENIED, str(error))
    structlog.contextvars.bind_contextvars(api_key=key.name)  # each call has its own task
    return None


def log_refused_call(
    context: Context, request_log: RequestLog, method: str, refusal: KeyRefusal
) -> None:
    """Logs a call that its key does not allow; `method` has a leading slash."""
    with open_call(context, request_log, method.lstrip("/")) as call:
        call.scope.status = refusal.status.name
        call.scope.record_failure(refusal.code, refusal.detail)


def scope_of_method(method: str) -> Scope | None:
    """The scope that a method requires; None for public methods."""
    if method in PUBLIC_METHODS:
        return None
    return Scope.DETECT if method in _DETECT else Scope.ADMIN


def _first_text(metadata: _Metadata, name: str) -> str | None:
    """The first value of a name, as over HTTP; None if there is none, or if it is binary."""
    value = next((value for key, value in metadata if key == name), None)
    return value if isinstance(value, str) else None
