"""Limits the time in which the request of a unary call must arrive.

gRPC reads the whole message of a unary call before it runs the method, for as long as that takes.
So clients that send nothing, or send slowly, could hold all calls that are allowed at once. Here a
call is handled as a stream, whose first message is read within a time limit: a short one for
methods that need no key, as their requests are small.
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
_PUBLIC_SECONDS = 2.0
_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class ReceiveTimeInterceptor(grpc.aio.ServerInterceptor):
    """Limits the time in which the request of a unary call must arrive."""

    def __init__(self, receive_seconds: float, public_seconds: float = _PUBLIC_SECONDS) -> None:
        """Takes the limits.

        Args:
            receive_seconds: for methods that need a key.
            public_seconds: for public methods.
        """
        self._receive_seconds = receive_seconds
        self._public_seconds = public_seconds

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Returns the handler of a call, with the limit if the call has one request."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        public = handler_call_details.method in PUBLIC_METHODS
        seconds = self._public_seconds if public else self._receive_seconds
        read, write = handler.request_deserializer, handler.response_serializer
        if handler.response_streaming:

            async def respond_with_stream(
                requests: AsyncIterator[Any], context: Context
            ) -> AsyncIterator[Any]:
                request = await _first(requests, context, seconds)
                async for response in handler.unary_stream(request, context):
                    yield response

            return grpc.stream_stream_rpc_method_handler(respond_with_stream, read, write)

        async def respond(requests: AsyncIterator[Any], context: Context) -> Any:
            return await handler.unary_unary(await _first(requests, context, seconds), context)

        return grpc.stream_unary_rpc_method_handler(respond, read, write)


async def _first(requests: AsyncIterator[Any], context: Context, seconds: float) -> Any:
    """The request of a unary call; aborts the call if it does not arrive in time."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(aiter(requests))
    except TimeoutError:
        detail = f"the request was not received within {seconds:g} s"
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, detail)
    except StopAsyncIteration:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no request")
