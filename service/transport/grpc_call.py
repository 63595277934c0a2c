"""What the gRPC services share: what a call carries, how it is parsed, counted and drained."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message

from service.core.selection import PRIORITY_HEADER
from service.errors import ShuttingDown
from service.observability.request_log import RequestLog
from service.observability.request_scope import RequestScope
from service.observability.trace_context import TRACEPARENT, TRACESTATE
from service.transport.grpc_status import MalformedMessage, Refusal
from service.transport.grpc_stream import FramePump
from service.transport.protobuf_fields import BrokenMessage, has_more_fields
from service.usage import UseCounter

_MOST_FIELDS = 10_000  # of one message, those in it included
_RECONNECT_SECONDS = 1

REQUEST_ID_KEY = "x-request-id"
PRIORITY_KEY = PRIORITY_HEADER.lower()

# gRPC cancels a call at its deadline. Work for it ends a little earlier, so that it ends as an
# expired deadline and its answer, if there is one, still has time to travel.
_MARGIN_SECONDS = 0.005
_MARGIN_SHARE = 0.1  # of short deadlines

Context = grpc.aio.ServicerContext[Any, Any]
_Message = TypeVar("_Message", bound=Message)
_Answer = TypeVar("_Answer")


class GrpcService(Protocol):
    """A service that can share the server's port."""

    @property
    def name(self) -> str:
        """Its full name, for health and reflection."""

    @property
    def descriptors(self) -> DescriptorPool:
        """Where reflection finds its messages."""

    def handlers(self) -> grpc.GenericRpcHandler:
        """For the server."""

    def begin_drain(self) -> None:
        """Refuses new work; what was accepted is answered."""

    async def wait_idle(self) -> None:
        """Returns when no call is under way."""


class CallsInFlight:
    """Answers a service's calls and counts them, so that a drain can wait for the last of them."""

    def __init__(self) -> None:
        """Starts with none."""
        self._answering = UseCounter()
        self._draining = False
        self._streams: set[FramePump[bytes, Any]] = set()

    def begin_drain(self) -> None:
        """From now on nothing is accepted; streams end after the messages that were read."""
        self._draining = True
        for stream in self._streams:
            stream.stop_reading()

    def refuse_if_draining(self) -> None:
        """To be called before work is accepted.

        Raises:
            ShuttingDown: once a drain has begun.
        """
        if self._draining:
            raise ShuttingDown(
                "the service is shutting down; what it had taken before is answered",
                retry_after_seconds=_RECONNECT_SECONDS,
            )

    async def wait_idle(self) -> None:
        """Returns when no call is under way."""
        await self._answering.wait_for_zero()

    async def answer(
        self,
        call: Call,
        context: Context,
        work: Awaitable[_Answer],
        refuse: Callable[[Exception], Refusal],
        note: Callable[[str], None],
    ) -> _Answer:
        """Awaits the work for a call and tells its failure as a status.

        Args:
            call: whose work it is.
            context: gRPC's own.
            work: makes the answer.
            refuse: how an exception of the work is told.
            note: is told how the call ended: "ok", "cancelled", or the code of an error.
        """
        outcome, status = "internal", grpc.StatusCode.OK
        context.set_trailing_metadata(call.metadata)
        try:
            with self._answering:
                answer = await work
            outcome = "ok"
            return answer
        except asyncio.CancelledError:
            # gRPC cancels a call for both: a client that left and a deadline that passed.
            outcome = "deadline_exceeded" if call.is_late else "cancelled"
            late = grpc.StatusCode.DEADLINE_EXCEEDED
            status = late if call.is_late else grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            refusal = refuse(error)
            outcome, status = refusal.code, refusal.status
        finally:
            call.scope.status = status.name
            note(outcome)
        await context.abort(refusal.status, refusal.detail, (*call.metadata, *refusal.metadata))

    async def answer_stream(
        self,
        messages: AsyncIterator[bytes],
        call: Call,
        context: Context,
        answer: Callable[[int, bytes], Coroutine[Any, Any, Message]],
        in_flight: int,
    ) -> None:
        """The work for a stream of messages: answers each, in their order.

        Args:
            messages: of the client.
            call: the stream as a whole.
            context: gRPC's own.
            answer: turns a message and its index into an answer; tells errors as answers.
            in_flight: most messages that are read and not yet answered.

        Raises:
            ShuttingDown: when the service drains; what was read is answered by then.
        """
        self.refuse_if_draining()
        await context.send_initial_metadata(call.metadata)
        if not self._draining:  # a drain may have begun meanwhile
            pump = FramePump(answer, context.write, in_flight)
            self._streams.add(pump)
            try:
                await pump.run(messages)
            finally:
                self._streams.discard(pump)
        self.refuse_if_draining()


@dataclass(frozen=True)
class Call:
    """One call as the adapter sees it."""

    request_id: str
    scope: RequestScope
    deadline: float | None  # time.monotonic seconds
    priority: object  # as it came; None where none did

    @property
    def is_late(self) -> bool:
        """Whether its deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What the client gets back."""
        return ((REQUEST_ID_KEY, self.request_id), *self.scope.trace.headers)


@contextmanager
def open_call(
    context: Context, request_log: RequestLog, method: str, *, quiet: bool = False
) -> Iterator[Call]:
    """A call for the time that it is under way; ids that are not sane are replaced or dropped.

    Args:
        context: gRPC's own.
        request_log: follows the call.
        method: its full name, without a leading slash.
        quiet: whether it is a probe, which nobody wants to read about.
    """
    metadata = tuple(context.invocation_metadata() or ())
    with request_log.track(
        "grpc",
        method,
        request_id=next((value for key, value in metadata if key == REQUEST_ID_KEY), None),
        traceparents=[value for key, value in metadata if key == TRACEPARENT],
        tracestates=[value for key, value in metadata if key == TRACESTATE],
        quiet=quiet,
    ) as scope:
        yield Call(
            request_id=scope.request_id,
            scope=scope,
            deadline=_deadline(context.time_remaining()),
            priority=next((value for key, value in metadata if key == PRIORITY_KEY), None),
        )


def parse_message(message_type: type[_Message], data: bytes) -> _Message:
    """Reads a message.

    Raises:
        MalformedMessage: for bytes that are none, and for a message of very many fields.
    """
    message = message_type()
    name = message.DESCRIPTOR.full_name
    try:
        if has_more_fields(data, message.DESCRIPTOR, _MOST_FIELDS):
            raise MalformedMessage(f"the {name} has more than {_MOST_FIELDS} fields")
        message.ParseFromString(data)
    except (BrokenMessage, DecodeError):
        raise MalformedMessage(f"the request is not a message of type {name}") from None
    return message


def _deadline(remaining: float | None) -> float | None:
    if remaining is None or not math.isfinite(remaining):
        return None
    margin = min(_MARGIN_SECONDS, _MARGIN_SHARE * remaining)
    return time.monotonic() + remaining - margin
