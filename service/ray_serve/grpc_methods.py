"""gRPC calls in a replica: the methods of `lite-detr serve`, without its gRPC server.

Ray's proxy -> ForwardedCall -> ReplicaMethods -> a handler of `rpc` or `oip` -> CallOutcome

Ray passes a call on as one object and takes one object as its result. So both have all that the
handlers read and set of gRPC's context. This module does not import Ray.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import grpc
import structlog
from google.protobuf.message import DecodeError

from service.access.api_keys import KeyRing
from service.observability.metrics import Metrics
from service.observability.request_log import RequestLog
from service.rpc.api_key_interceptor import check_call, log_refused_call
from service.transport.grpc_call import Context
from service.transport.grpc_methods import MethodHandlers
from service.transport.grpc_status import MalformedMessage, refusal_of

_log = structlog.get_logger(__name__)

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True)
class ForwardedCall:
    """A unary call as the proxy received it.

    Attributes:
        method: full name with a leading slash.
        data: the request message.
        metadata: of the client.
        peer: gRPC's description of the client's address.
        seconds_left: until the deadline; None if there is none.
    """

    method: str
    data: bytes
    metadata: Metadata
    peer: str
    seconds_left: float | None


@dataclass(frozen=True)
class CallOutcome:
    """How a call ended.

    Attributes:
        status: name of the gRPC status code.
        detail: for people.
        metadata: trailing metadata.
        data: the response message; empty if the status is not OK.
    """

    status: str
    detail: str
    metadata: Metadata
    data: bytes

    def SerializeToString(self) -> bytes:
        """The outcome as bytes; Ray calls it, as it would for a response message."""
        return pickle.dumps((self.status, self.detail, self.metadata, self.data))

    @classmethod
    def from_bytes(cls, data: bytes) -> CallOutcome:
        """The outcome that a replica serialized."""
        return cls(*pickle.loads(data))


class _Aborted(Exception):
    """A handler aborted its call."""


class _ForwardedContext:
    """What handlers use of gRPC's context."""

    def __init__(self, call: ForwardedCall) -> None:
        self._call = call
        self._received = time.monotonic()
        self.code = grpc.StatusCode.OK
        self.detail = ""
        self.metadata: Metadata = ()

    def invocation_metadata(self) -> Metadata:
        return self._call.metadata

    def peer(self) -> str:
        return self._call.peer

    def time_remaining(self) -> float | None:
        left = self._call.seconds_left
        return None if left is None else left - (time.monotonic() - self._received)

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        self.metadata = tuple(metadata)

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> NoReturn:
        self.code, self.detail = code, details
        self.metadata = tuple(trailing_metadata) or self.metadata
        raise _Aborted


class ReplicaMethods:
    """The unary methods of all services of a replica."""

    def __init__(
        self,
        services: Iterable[MethodHandlers],
        keys: KeyRing | None,
        metrics: Metrics,
        request_log: RequestLog,
        max_message_bytes: int,
    ) -> None:
        """Prepares the methods.

        Args:
            services: their handlers.
            keys: API keys that calls must present; None: no key is required.
            metrics: count the refused calls.
            request_log: logs the refused calls.
            max_message_bytes: of a request.
        """
        self._handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]] = {
            f"/{service.service_name}/{name}": handler
            for service in services
            for name, handler in service.handlers.items()
            if not (handler.request_streaming or handler.response_streaming)
        }
        self._keys = keys
        self._metrics = metrics
        self._request_log = request_log
        self._max_message_bytes = max_message_bytes

    async def run(self, call: ForwardedCall) -> CallOutcome:
        """Runs a call.

        An exception that a handler does not handle is an outcome, too: Ray would pass it on as it
        does the end of a replica, and the proxy would send the call again.
        """
        context = _ForwardedContext(call)
        try:
            data = await self._respond(call, context)
        except _Aborted:
            data = b""
        except Exception as error:
            if not isinstance(error, MalformedMessage):
                _log.exception("a gRPC method failed", method=call.method)
            refusal = refusal_of(error)
            metadata = (*context.metadata, *refusal.metadata)
            return CallOutcome(refusal.status.name, refusal.detail, metadata, b"")
        return CallOutcome(context.code.name, context.detail, context.metadata, data)

    async def _respond(self, call: ForwardedCall, own: _ForwardedContext) -> bytes:
        context = cast(Context, own)
        handler = self._handlers.get(call.method)
        if handler is None:
            await own.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        if self._keys is not None:
            refusal = check_call(self._keys, call.method, call.metadata)
            if refusal is not None:
                self._metrics.keys_refused.labels("grpc", refusal.code).inc()
                log_refused_call(context, self._request_log, call.method, refusal)
                await own.abort(refusal.status, refusal.detail)
        size, limit = len(call.data), self._max_message_bytes
        if size > limit:
            detail = f"the message has {size} bytes; at most {limit} are accepted"
            await own.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, detail)
        read, write = handler.request_deserializer, handler.response_serializer
        try:
            request = call.data if read is None else read(call.data)
        except DecodeError:
            raise MalformedMessage("the request is not a message of the method's type") from None
        respond: Any = handler.unary_unary
        response = await respond(request, context)
        return bytes(response) if write is None else bytes(write(response))
