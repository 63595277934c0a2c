"""What the gRPC services share: one call, its parsing, its outcome, and draining."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote

import grpc
import structlog
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message

from service.core.selection import PRIORITY_HEADER
from service.errors import ShuttingDown
from service.observability.request_log import RequestLog, RequestOrigin
from service.observability.request_scope import RequestScope
from service.observability.trace_context import TRACEPARENT, TRACESTATE
from service.transport.grpc_methods import MethodHandlers
from service.transport.grpc_status import MalformedMessage, Refusal
from service.transport.grpc_stream import FramePump
from service.transport.protobuf_fields import BrokenMessage, has_more_fields
from service.usage import UseCounter

_MAX_FIELDS = 10_000  # of one message with all messages inside it
_RECONNECT_SECONDS = 1

REQUEST_ID_KEY = "x-request-id"
PRIORITY_KEY = PRIORITY_HEADER.lower()

# gRPC cancels a call at its deadline. Detection gets a slightly earlier one, so that it ends with
# DeadlineExceeded, and a result still has time to reach the client.
_MARGIN_SECONDS = 0.005
_MARGIN_SHARE = 0.1  # of short deadlines

Context = grpc.aio.ServicerContext[Any, Any]
_Message = TypeVar("_Message", bound=Message)
_Response = TypeVar("_Response")


class GrpcService(Protocol):
    """A gRPC service on the port of `service.rpc.server`."""

    @property
    def name(self) -> str:
        """The service's full name, for health and reflection."""

    @property
    def descriptors(self) -> DescriptorPool:
        """The descriptor pool of its messages, for reflection."""

    def handlers(self) -> MethodHandlers:
        """The handlers of its methods."""

    @property
    def open_calls(self) -> int:
        """The number of calls in flight."""

    def begin_drain(self) -> None:
        """Refuses new images; accepted ones are finished."""

    async def wait_idle(self) -> None:
        """Returns when no call is in flight."""


class CallsInFlight:
    """Runs the calls of a service and counts those in flight, so that a drain can wait for them."""

    def __init__(self) -> None:
        """Starts with no call."""
        self._in_flight = UseCounter()
        self._draining = False
        self._streams: set[FramePump[bytes, Any]] = set()

    @property
    def open_calls(self) -> int:
        """The number of calls in flight."""
        return self._in_flight.count

    def begin_drain(self) -> None:
        """Refuses new images; streams end after the messages that were read."""
        self._draining = True
        for stream in self._streams:
            stream.stop_reading()

    def refuse_if_draining(self) -> None:
        """Must be called before an image is accepted.

        Raises:
            ShuttingDown: once a drain has begun.
        """
        if self._draining:
            raise ShuttingDown(
                "the service is shutting down; requests accepted before are finished",
                retry_after_seconds=_RECONNECT_SECONDS,
            )

    async def wait_idle(self) -> None:
        """Returns when no call is in flight."""
        await self._in_flight.wait_for_zero()

    async def run(
        self,
        call: Call,
        context: Context,
        work: Awaitable[_Response],
        refuse: Callable[[Exception], Refusal],
        count: Callable[[str], None],
    ) -> _Response:
        """Awaits the work of a call; an exception becomes the call's status.

        Args:
            call: the call.
            context: gRPC's own.
            work: returns the response.
            refuse: converts an exception of the work.
            count: called with the outcome: "ok", "cancelled", or the code of an error.
        """
        outcome, status = "internal", grpc.StatusCode.OK
        context.set_trailing_metadata(call.metadata)
        try:
            with self._in_flight:
                response = await work
            outcome = "ok"
            return response
        except asyncio.CancelledError:
            # gRPC cancels a call if its client cancels it, and if its deadline passes.
            outcome = "deadline_exceeded" if call.is_late else "cancelled"
            late = grpc.StatusCode.DEADLINE_EXCEEDED
            status = late if call.is_late else grpc.StatusCode.CANCELLED
            if call.is_late:
                call.scope.record_failure(outcome, "the deadline of the call passed")
            raise
        except Exception as error:
            refusal = refuse(error)
            outcome, status = refusal.code, refusal.status
            call.scope.record_failure(refusal.code, refusal.detail)
        finally:
            call.scope.status = status.name
            count(outcome)
        await context.abort(refusal.status, refusal.detail, (*call.metadata, *refusal.metadata))

    async def run_stream(
        self,
        messages: AsyncIterator[bytes],
        call: Call,
        context: Context,
        respond: Callable[[int, bytes], Coroutine[Any, Any, Message]],
        in_flight: int,
    ) -> None:
        """Responds to each message of a stream, in their order.

        Args:
            messages: from the client.
            call: the whole stream.
            context: gRPC's own.
            respond: returns the response to a message and its index; errors are responses too.
            in_flight: maximum number of messages that are read and have no response yet.

        Raises:
            ShuttingDown: when the service drains; messages that were read have a response by then.
        """
        self.refuse_if_draining()
        await context.send_initial_metadata(call.metadata)
        if not self._draining:  # a drain may have begun meanwhile
            pump = FramePump(respond, context.write, in_flight)
            self._streams.add(pump)
            try:
                await pump.run(messages)
            finally:
                self._streams.discard(pump)
        self.refuse_if_draining()


@dataclass(frozen=True)
class Call:
    """One call in flight."""

    request_id: str
    scope: RequestScope
    deadline: float | None  # time.monotonic seconds
    priority: object  # the metadata's value; None if not given

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of the response."""
        return ((REQUEST_ID_KEY, self.request_id), *self.scope.trace.headers)


@contextmanager
def open_call(
    context: Context, request_log: RequestLog, method: str, *, quiet: bool = False
) -> Iterator[Call]:
    """Opens a call in the request log; invalid ids are replaced.

    Args:
        context: gRPC's own.
        request_log: follows the call.
        method: full name, without a leading slash.
        quiet: whether the call is a probe, which is not logged.
    """
    metadata = tuple(context.invocation_metadata() or ())
    with request_log.track(
        "grpc",
        method,
        request_id=next((value for key, value in metadata if key == REQUEST_ID_KEY), None),
        traceparents=[value for key, value in metadata if key == TRACEPARENT],
        tracestates=[value for key, value in metadata if key == TRACESTATE],
        origin=_origin(context, metadata),
        quiet=quiet,
    ) as scope:
        scope.key_name = str(structlog.contextvars.get_contextvars().get("api_key", ""))
        yield Call(
            request_id=scope.request_id,
            scope=scope,
            deadline=_deadline(context.time_remaining()),
            priority=next((value for key, value in metadata if key == PRIORITY_KEY), None),
        )


def parse_message(message_type: type[_Message], data: bytes) -> _Message:
    """Parses a message.

    Raises:
        MalformedMessage: for bytes that are not such a message, and for too many fields.
    """
    message = message_type()
    name = message.DESCRIPTOR.full_name
    try:
        if has_more_fields(data, message.DESCRIPTOR, _MAX_FIELDS):
            raise MalformedMessage(f"the {name} has more than {_MAX_FIELDS} fields")
        message.ParseFromString(data)
    except (BrokenMessage, DecodeError):
        raise MalformedMessage(f"the request is not a message of type {name}") from None
    return message


def _origin(context: Context, metadata: Iterable[tuple[str, str | bytes]]) -> RequestOrigin:
    def values(name: str) -> list[str]:
        return [str(value) for key, value in metadata if key == name]

    return RequestOrigin(lambda: peer_address(context.peer() or ""), values)


def peer_address(peer: str) -> str:
    """Returns the address in gRPC's description of a peer.

    `ipv4:10.0.0.1:4711` and `ipv6:%5B::1%5D:4711` have one, `unix:...` has none.
    """
    kind, _, rest = unquote(peer).partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return ""
    return rest.rpartition(":")[0].strip("[]")


def _deadline(remaining: float | None) -> float | None:
    if remaining is None or not math.isfinite(remaining):
        return None
    margin = min(_MARGIN_SECONDS, _MARGIN_SHARE * remaining)
    return time.monotonic() + remaining - margin
