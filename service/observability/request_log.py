"""Follows each request from its first byte to its last: names on log lines, access log, traces.

Adapters open a request here and close it again; between the two, whatever is logged carries the
request's id and its trace's, and rooms below find the request by `current_scope`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import structlog

from service.observability.request_scope import SCOPE, RequestScope, ScopeListener
from service.observability.trace_context import (
    TraceContext,
    new_request_id,
    open_trace,
    valid_request_id,
)
from service.settings import Settings

# Asking for traces in the way of every OpenTelemetry program; its SDK reads these itself.
_OTLP_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_access = structlog.get_logger("service.access")


class TracingUnavailable(RuntimeError):
    """Traces were asked for and cannot be had; the message says what to do."""


class RequestSpan(ScopeListener, Protocol):
    """The span of one request."""

    trace: TraceContext

    def end(self, scope: RequestScope) -> None:
        """Ends it as the request ended."""


class Tracer(Protocol):
    """Makes spans and sends them away."""

    def begin(self, transport: str, method: str, incoming: TraceContext) -> RequestSpan:
        """Begins the span of a request whose client stands at `incoming`."""

    def close(self) -> None:
        """Sends what is left; may block for some seconds."""


class RequestLog:
    """Opens and closes requests."""

    def __init__(self, *, log_requests: bool = False, tracer: Tracer | None = None) -> None:
        """Prepares a request log.

        Args:
            log_requests: whether each request gets a line in the log.
            tracer: where spans go; None: nobody wants them.
        """
        self._log_requests = log_requests
        self._tracer = tracer

    @contextmanager
    def track(  # noqa: PLR0913 - all of it is read from one request's head
        self,
        transport: str,
        method: str,
        *,
        path: str = "",
        request_id: object = None,
        traceparents: Iterable[object] = (),
        tracestates: Iterable[object] = (),
        quiet: bool = False,
    ) -> Iterator[RequestScope]:
        """One request, for the time that it is under way.

        Args:
            transport: "http" or "grpc".
            method: HTTP's verb, or the full name of the gRPC method.
            path: of an HTTP request.
            request_id: what the client calls it; one that is not sane is replaced.
            traceparents: all that came.
            tracestates: all that came.
            quiet: whether it is a probe: no line, no span.
        """
        trace = open_trace(traceparents, tracestates)
        span: RequestSpan | None = None
        if self._tracer is not None and not quiet:
            span = self._tracer.begin(transport, method, trace)
            trace = span.trace
        name = valid_request_id(request_id) or new_request_id()
        logged = self._log_requests and not quiet
        listener = span if trace.sampled else None
        detailed = logged or listener is not None
        scope = RequestScope(
            transport, method, name, trace, detailed=detailed, path=path, listener=listener
        )
        token = SCOPE.set(scope)
        try:
            yield scope
        finally:
            if logged:
                _access.info("request", **_line(scope))
            SCOPE.reset(token)
            if span is not None:
                span.end(scope)

    def close(self) -> None:
        """Sends the last spans; may block for some seconds."""
        if self._tracer is not None:
            self._tracer.close()


def open_request_log(settings: Settings) -> RequestLog:
    """The request log of a deployment.

    Raises:
        TracingUnavailable: where traces are asked for and cannot be had.
    """
    return RequestLog(log_requests=settings.log_requests, tracer=_open_tracer(settings))


def _open_tracer(settings: Settings) -> Tracer | None:
    """What sends spans, if anybody asked for that; OpenTelemetry is loaded only then."""
    asked = [name for name in _OTLP_VARIABLES if os.environ.get(name)]
    if settings.otlp_endpoint is not None:
        asked = ["otlp_endpoint"]
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not asked or disabled or os.environ.get("OTEL_TRACES_EXPORTER", "").strip() == "none":
        return None
    try:
        from service.observability.tracing import open_tracer  # noqa: PLC0415
    except ImportError as error:
        raise TracingUnavailable(
            f"{asked[0]} asks for traces, which need the extra `otel` "
            f"(pip install 'lite-detr-service[otel]'): {error}"
        ) from error
    try:
        return open_tracer(settings.otlp_endpoint)
    except ValueError as error:
        raise TracingUnavailable(str(error)) from error


def _line(scope: RequestScope) -> dict[str, Any]:
    """What the access log says of a request; its ids stand on every line anyway."""
    fields: dict[str, Any] = {
        "transport": scope.transport,
        "method": scope.method,
        "status": scope.status,
        "duration_ms": round((time.monotonic() - scope.started) * 1000, 3),
    }
    for name in ("route", "protocol", "outcome"):
        if value := getattr(scope, name):
            fields[name] = value
    if scope.images:
        fields |= {"images": scope.images, "image_bytes": scope.num_bytes}
    if scope.images == 1 and scope.last_image is not None:
        fields["image_size"] = scope.last_image.size
        fields["timings_ms"] = scope.last_image.timings.rounded()
    if scope.encode_seconds:
        fields["encode_ms"] = round(scope.encode_seconds * 1000, 3)
    return fields
