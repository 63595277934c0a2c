"""Methods that need no key: their requests are small, and are not waited for.

gRPC reads the whole message of a unary call before it runs the method. Somebody without a key could
so make the server hold as many messages of the largest size as calls are allowed. Here the call is
handled as a stream, whose first message is read within a time limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from service.transport.grpc_call import Context

PUBLIC_METHODS = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    }
)
_RECEIVE_SECONDS = 2.0
_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class PublicCallInterceptor(grpc.aio.ServerInterceptor):
    """Limits the time in which the request of a public method must arrive."""

    def __init__(self, receive_seconds: float = _RECEIVE_SECONDS) -> None:
        """Takes the limit."""
        self._receive_seconds = receive_seconds

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Returns the handler of a call, with the limit if its method is public."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method not in PUBLIC_METHODS:
            return handler
        read, write = handler.request_deserializer, handler.response_serializer
        if handler.response_streaming:

            async def respond_with_stream(
                requests: AsyncIterator[Any], context: Context
            ) -> AsyncIterator[Any]:
                request = await self._first(requests, context)
                async for response in handler.unary_stream(request, context):
                    yield response

            return grpc.stream_stream_rpc_method_handler(respond_with_stream, read, write)

        async def respond(requests: AsyncIterator[Any], context: Context) -> Any:
            return await handler.unary_unary(await self._first(requests, context), context)

        return grpc.stream_unary_rpc_method_handler(respond, read, write)

    async def _first(self, requests: AsyncIterator[Any], context: Context) -> Any:
        """The request of a unary call; aborts the call if it does not arrive in time."""
        try:
            async with asyncio.timeout(self._receive_seconds):
                return await anext(aiter(requests))
        except TimeoutError:
            detail = f"the request was not received within {self._receive_seconds:g} s"
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, detail)
        except StopAsyncIteration:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request")
