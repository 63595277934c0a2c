"""The protocol's own errors with their HTTP and gRPC statuses.

Errors of the Detector use the tables of every adapter (`service.transport.http_status`,
`service.transport.grpc_status`).
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc


@dataclass(frozen=True)
class RefusalKind:
    """The code and statuses of one kind of error."""

    code: str  # stable, for programs and metrics
    http_status: int
    grpc_status: grpc.StatusCode


MALFORMED = RefusalKind("malformed_request", 400, grpc.StatusCode.INVALID_ARGUMENT)
UNKNOWN_PATH = RefusalKind("not_found", 404, grpc.StatusCode.NOT_FOUND)
UNKNOWN_MODEL = RefusalKind("unknown_model", 404, grpc.StatusCode.NOT_FOUND)
WRONG_METHOD = RefusalKind("method_not_allowed", 405, grpc.StatusCode.UNIMPLEMENTED)
LOAD_FAILED = RefusalKind("load_failed", 500, grpc.StatusCode.INTERNAL)
NOT_LIVE = RefusalKind("not_live", 503, grpc.StatusCode.UNAVAILABLE)
NOT_READY = RefusalKind("not_ready", 503, grpc.StatusCode.UNAVAILABLE)
CONTROL_OFF = RefusalKind("model_control_off", 503, grpc.StatusCode.UNAVAILABLE)


class OipRefused(Exception):
    """A request that violates the protocol, or names something that the service does not have.

    Attributes:
        kind: its code and statuses.
        detail: one sentence for the person who sent the request.
    """

    def __init__(self, kind: RefusalKind, detail: str) -> None:
        """Stores what the response will contain."""
        super().__init__(detail)
        self.kind = kind
        self.detail = detail

    @property
    def code(self) -> str:
        """The code of its kind."""
        return self.kind.code


def malformed(detail: str) -> OipRefused:
    """A request that violates the protocol."""
    return OipRefused(MALFORMED, detail)
