"""What the gRPC services share: what a call carries, how it is parsed, counted and drained."""

from __future__ import annotations

import asyncio
import math
import re
import time
import uuid
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message

from service.field_count import BrokenMessage, has_more_fields
from service.grpc_status import MalformedMessage
from service.selection import PRIORITY_HEADER

_MOST_FIELDS = 10_000  # of one message, those in it included

REQUEST_ID_KEY = "x-request-id"
TRACEPARENT_KEY = "traceparent"
PRIORITY_KEY = PRIORITY_HEADER.lower()

# The same rules as over HTTP. A request id is safe in any log; a traceparent is W3C Trace
# Context, version 00, whose all-zero ids are invalid.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

# gRPC cancels a call at its deadline. Work for it ends a little earlier, so that it ends as an
# expired deadline and its answer, if there is one, still has time to travel.
_MARGIN_SECONDS = 0.005
_MARGIN_SHARE = 0.1  # of short deadlines

Context = grpc.aio.ServicerContext[Any, Any]
_Message = TypeVar("_Message", bound=Message)


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


class CallsUnderWay:
    """Counts calls, so that a drain can wait for the last of them."""

    def __init__(self) -> None:
        """Starts with none."""
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        """A call came."""
        self._count += 1
        self._idle.clear()

    def end(self) -> None:
        """A call is over."""
        self._count -= 1
        if not self._count:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Returns when no call is under way."""
        await self._idle.wait()


@dataclass(frozen=True)
class Call:
    """One call as the adapter sees it."""

    request_id: str
    traceparent: str | None
    deadline: float | None  # time.monotonic seconds
    priority: object  # as it came; None where none did

    @property
    def is_late(self) -> bool:
        """Whether its deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What the client gets back."""
        request_id = ((REQUEST_ID_KEY, self.request_id),)
        if self.traceparent is None:
            return request_id
        return (*request_id, (TRACEPARENT_KEY, self.traceparent))


def open_call(context: Context) -> Call:
    """Reads what came with a call; ids that are not sane are replaced or dropped."""
    metadata = dict(context.invocation_metadata() or ())
    return Call(
        request_id=sane_request_id(metadata.get(REQUEST_ID_KEY)) or uuid.uuid4().hex,
        traceparent=_sane(_TRACEPARENT, metadata.get(TRACEPARENT_KEY)),
        deadline=_deadline(context.time_remaining()),
        priority=metadata.get(PRIORITY_KEY),
    )


def sane_request_id(value: object) -> str | None:
    """A client's name for its request, or None where it cannot be used."""
    return _sane(_REQUEST_ID, value)


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


def _sane(pattern: re.Pattern[str], value: object) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None
