"""gRPC's server, with calls of unknown methods handled outside its main loop.

gRPC for asyncio decodes the path of each call in its main loop. A path that is not UTF-8 ends that
loop, and with it the server: one call without a key would be enough. Only paths of methods that are
not registered with gRPC's core are decoded. Here all methods are registered, and a call of any
other path is responded to with UNIMPLEMENTED before it reaches the loop.

This overrides internals of grpcio: pyproject.toml limits its version, and
tests/service/rpc/test_grpc_internals.py checks what is used here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, cast

import grpc
from grpc._cython import cygrpc
from grpc.aio import _server

from service.transport.grpc_call import Context
from service.transport.grpc_methods import MethodHandlers

_MAX_REFUSALS = 1024  # responses in flight to calls of unknown methods, which clients may not read
_Options = Sequence[tuple[str, Any]]


def new_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    options: _Options,
    max_concurrent_calls: int,
) -> grpc.aio.Server:
    """A server whose services are added with `add_service`."""
    return cast(grpc.aio.Server, _Server(interceptors, options, max_concurrent_calls))


def add_service(server: grpc.aio.Server, service: MethodHandlers) -> None:
    """Adds a service before the start, and registers its methods with gRPC's core."""
    server.add_generic_rpc_handlers((service,))
    server.add_registered_method_handlers(service.service_name, service.handlers)


class _CoreServer(cygrpc.AioServer):  # type: ignore[misc]  # compiled, without types
    """Handles calls of methods that are not registered."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *arguments: Any) -> None:
        super().__init__(loop, *arguments)
        self._event_loop = loop
        self._refusals: set[asyncio.Task[None]] = set()

    async def _request_call(self) -> None:
        """Responds to each call without a registered method; ends with an exception of gRPC.

        gRPC's main loop awaits the next such call here, and never gets one.
        """
        while True:
            state = await super()._request_call()
            if len(self._refusals) >= _MAX_REFUSALS:
                continue  # without its state gRPC cancels the call
            refusal = self._event_loop.create_task(_refuse(state, self._event_loop))
            self._refusals.add(refusal)
            refusal.add_done_callback(self._refusals.discard)


async def _refuse(state: Any, loop: asyncio.AbstractEventLoop) -> None:
    context: Context = cygrpc._ServicerContext(state, None, None, loop)
    # The first is how abort returns; the second: the client has gone.
    with contextlib.suppress(grpc.aio.AbortError, cygrpc.ExecuteBatchError):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


class _Server(_server.Server):
    """The Python part of a server around a `_CoreServer`."""

    def __init__(
        self,
        interceptors: Sequence[grpc.aio.ServerInterceptor],
        options: _Options,
        max_concurrent_calls: int,
    ) -> None:
        self._loop = cygrpc.get_working_loop()
        arguments = (self._loop, None, (), interceptors, tuple(options), max_concurrent_calls)
        try:
            self._server = _CoreServer(*arguments)
        except TypeError:
            self._server = _CoreServer(*arguments, False)  # later versions: without xDS
