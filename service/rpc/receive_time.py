"""Limits the time in which the request of a unary call must arrive, and refuses other bytes.

gRPC reads the whole message of a unary call before it runs the method, for as long as that takes.
So clients that send nothing, or send slowly, could hold all calls that are allowed at once. Here a
call is handled as a stream, whose first message is read within a time limit: a short one for
methods that need no key, as their requests are small.

gRPC also logs a traceback for each request that its handler's deserializer refuses. So requests are
read as bytes, and deserialized here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

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
    """Limits the time in which a unary request must arrive; INVALID_ARGUMENT for other bytes."""

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
        if handler is None:
            return handler
        if handler.request_streaming:
            return _handler_of_streams(handler)
        public = handler_call_details.method in PUBLIC_METHODS
        seconds = self._public_seconds if public else self._receive_seconds
        read, write = handler.request_deserializer, handler.response_serializer
        if handler.response_streaming:

            async def respond_with_stream(
                requests: AsyncIterator[Any], context: Context
            ) -> AsyncIterator[Any]:
                request = await _parsed(await _first(requests, context, seconds), read, context)
                async for response in handler.unary_stream(request, context):
                    yield response

            return grpc.stream_stream_rpc_method_handler(respond_with_stream, None, write)

        async def respond(requests: AsyncIterator[Any], context: Context) -> Any:
            request = await _parsed(await _first(requests, context, seconds), read, context)
            return await handler.unary_unary(request, context)

        return grpc.stream_unary_rpc_method_handler(respond, None, write)


def _handler_of_streams(handler: Any) -> Any:
    """A handler that gets the same requests, but is never given bytes that are none."""
    read = handler.request_deserializer
    if read is None or not handler.response_streaming:
        return handler

    async def respond(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async def parsed() -> AsyncIterator[Any]:
            async for request in requests:
                yield await _parsed(request, read, context)

        async for response in handler.stream_stream(parsed(), context):
            yield response

    return grpc.stream_stream_rpc_method_handler(respond, None, handler.response_serializer)


async def _parsed(request: Any, read: Callable[[bytes], Any] | None, context: Context) -> Any:
    """The message of a request; aborts the call for bytes that are none."""
    if read is None:
        return request
    try:
        return read(request)
    except DecodeError:
        detail = "the request is not a message of the method's type"
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, detail)


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
