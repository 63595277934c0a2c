"""Names of a request that travel with it: its request id, and its place in a trace.

W3C Trace Context: a client says which trace it is in and which span called (`traceparent`); we
take part in that trace with a span of our own, which is what the answer carries. A request that
came without gets a trace of its own, so that its log lines always have one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

# What a client may call its request: visible ASCII without quotes or commas, safe in any log.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# version-trace_id-parent_id-flags. All-zero ids and version ff are invalid; a version above 00 may
# have more behind a further dash, which we cannot know.
_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace_id>(?!0{32})[0-9a-f]{32})"
    r"-(?P<parent_id>(?!0{16})[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
# Other vendors' state is passed on unread: printable ASCII, at most as much as must be passed on.
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")
_SAMPLED = 0x01
_RANDOM_TRACE_ID = 0x02  # level 2 of the standard
_KNOWN_FLAGS = _SAMPLED | _RANDOM_TRACE_ID  # unknown ones are not passed on


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Where our span of a request stands."""

    trace_id: str  # 32 hex digits
    span_id: str  # 16 hex digits: of our span
    parent_id: str | None  # of the client's span; None where the trace begins here
    flags: int
    tracestate: str = ""  # of other vendors

    @property
    def sampled(self) -> bool:
        """Whether somebody records this trace."""
        return bool(self.flags & _SAMPLED)

    @property
    def traceparent(self) -> str:
        """What whoever we answer or call is told."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """What an answer carries, as headers or metadata."""
        parent = ((TRACEPARENT, self.traceparent),)
        return (*parent, (TRACESTATE, self.tracestate)) if self.tracestate else parent


def open_trace(traceparents: Iterable[object], tracestates: Iterable[object] = ()) -> TraceContext:
    """Takes part in a client's trace, or begins one.

    Args:
        traceparents: every `traceparent` that came; more than one is as bad as none.
        tracestates: every `tracestate` that came, in order.
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
    """A client's name for its request, or None where it cannot be used."""
    return value if isinstance(value, str) and _REQUEST_ID.fullmatch(value) else None


def new_request_id() -> str:
    """For a request that came without."""
    return _random_hex(32)


def _parse(value: object) -> re.Match[str] | None:
    match = _TRACEPARENT.fullmatch(value) if isinstance(value, str) else None
    if match is not None and match["version"] == "00" and match["more"] is not None:
        return None
    return match


def _random_hex(digits: int) -> str:
    """A name that nobody else has; it need not be a secret. All zeros would mean "none"."""
    return f"{random.getrandbits(4 * digits) or 1:0{digits}x}"
