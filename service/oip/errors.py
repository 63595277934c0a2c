"""What the protocol itself can refuse, and how that is told: one table for HTTP and gRPC.

Errors of the Detector use the tables of every adapter (`service.transport.http_status`,
`service.transport.grpc_status`).
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass

import grpc


@dataclass(frozen=True)
class RefusalKind:
    """How one kind of refusal is told."""

    code: str  # stable, for programs and metrics
    http_status: int
    grpc_status: grpc.StatusCode


MALFORMED = RefusalKind("malformed_request", 400, grpc.StatusCode.INVALID_ARGUMENT)
UNKNOWN_PATH = RefusalKind("not_found", 404, grpc.StatusCode.NOT_FOUND)
UNKNOWN_MODEL = RefusalKind("unknown_model", 404, grpc.StatusCode.NOT_FOUND)
WRONG_METHOD = RefusalKind("method_not_allowed", 405, grpc.StatusCode.UNIMPLEMENTED)
TOO_LARGE = RefusalKind("body_too_large", 413, grpc.StatusCode.INVALID_ARGUMENT)
UNKNOWN_ENCODING = RefusalKind("unsupported_encoding", 415, grpc.StatusCode.INVALID_ARGUMENT)
LOAD_FAILED = RefusalKind("load_failed", 500, grpc.StatusCode.INTERNAL)
NOT_ALIVE = RefusalKind("not_live", 503, grpc.StatusCode.UNAVAILABLE)
NOT_READY = RefusalKind("not_ready", 503, grpc.StatusCode.UNAVAILABLE)
CONTROL_OFF = RefusalKind("model_control_off", 503, grpc.StatusCode.UNAVAILABLE)


_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 100


class OipRefused(Exception):
    """A request that the protocol's rules refuse.

    Attributes:
        kind: how it is told.
        detail: one sentence for the person who sent the request.
    """

    def __init__(self, kind: RefusalKind, detail: str) -> None:
        """Keeps what the client will read."""
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


def malformed(detail: str) -> OipRefused:
    """A request that is not what the protocol asks for."""
    return OipRefused(MALFORMED, detail)


def shown(value: object) -> str:
    """A client's value as a message shows it: short, however large it is."""
    return _repr.repr(value)
