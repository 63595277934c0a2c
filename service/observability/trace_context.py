"""Request ids and W3C Trace Context.

The client's `traceparent` names its trace and its span. The service joins that trace with a span of
its own, which the response's `traceparent` names. A request without a valid `traceparent` begins a
new trace, so that its log lines always have a trace id.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

# Visible ASCII without quotes and commas, which is safe in any log.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# version-trace_id-parent_id-flags. All-zero ids and version ff are invalid. A version above 00 may
# have further fields after another dash, which are ignored.
_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace_id>(?!0{32})[0-9a-f]{32})"
    r"-(?P<parent_id>(?!0{16})[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
# State of other vendors, forwarded unchanged: printable ASCII of at most 512 bytes, the length that
# must be forwarded.
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")
_SAMPLED = 0x01
_RANDOM_TRACE_ID = 0x02  # of W3C Trace Context level 2
_KNOWN_FLAGS = _SAMPLED | _RANDOM_TRACE_ID  # others are not forwarded


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The position of the service's span of a request in a trace."""

    trace_id: str  # 32 hex digits
    span_id: str  # 16 hex digits: the service's span
    parent_id: str | None  # the client's span; None if the trace begins here
    flags: int
    tracestate: str = ""  # of other vendors

    @property
    def sampled(self) -> bool:
        """Whether this trace is recorded."""
        return bool(self.flags & _SAMPLED)

    @property
    def traceparent(self) -> str:
        """The `traceparent` header of the response."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The headers (or gRPC metadata) of the response."""
        parent = ((TRACEPARENT, self.traceparent),)
        return (*parent, (TRACESTATE, self.tracestate)) if self.tracestate else parent


def open_trace(traceparents: Iterable[object], tracestates: Iterable[object] = ()) -> TraceContext:
    """Joins the client's trace, or begins a new one.

    Args:
        traceparents: all `traceparent` headers; more than one is treated as none.
        tracestates: all `tracestate` headers, in order.
    """
    parents = list(traceparents)
    parent = _parse(parents[0]) if len(parents) == 1 else None
    span_id = _random_hex(16)
    if parent is None:
        return TraceContext(_random_hex(32), span_id, None, flags=_RANDOM_TRACE_ID)
    flags = int(parent["flags"], 16) & _KNOWN_FLAGS
    state = ",".join(value for value in tracestates if isinstance(value, str))
    kept = state if _TRACESTATE.fullmatch(state) else ""
    return TraceContext(parent["trace_id"], span_id, parent["parent_id"], flags, kept)


def valid_request_id(value: object) -> str | None:
    """Returns a client's request id if it is valid, else None."""
    return value if isinstance(value, str) and _REQUEST_ID.fullmatch(value) else None


def new_request_id() -> str:
    """Generates a request id."""
    return _random_hex(32)


def _parse(value: object) -> re.Match[str] | None:
    match = _TRACEPARENT.fullmatch(value) if isinstance(value, str) else None
    if match is not None and match["version"] == "00" and match["more"] is not None:
        return None
    return match


def _random_hex(digits: int) -> str:
    """Returns a random id, which need not be secret; all zeros are not allowed."""
    return f"{random.getrandbits(4 * digits) or 1:0{digits}x}"
