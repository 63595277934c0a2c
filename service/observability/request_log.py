"""Opens a scope for each request: ids on log lines, the access log, and the request's span.

Adapters open the scope of a request with `RequestLog.track`. Until it is closed, all log lines
carry the request's ids, and lower layers find the request with `current_scope`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from service.observability.proxies import TrustedProxies
from service.observability.request_scope import SCOPE, RequestScope, ScopeListener
from service.observability.trace_context import (
    TraceContext,
    new_request_id,
    open_trace,
    valid_request_id,
)
from service.settings import Settings

# OpenTelemetry's variables that enable tracing; its SDK reads their values.
_OTLP_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")

_MAX_USER_AGENT = 200  # characters
_MAX_DETAIL = 500

_access_log = structlog.get_logger("service.access")


class TracingUnavailable(RuntimeError):
    """Tracing is enabled but cannot be used; the message says what to do."""


class RequestSpan(ScopeListener, Protocol):
    """The span of one request."""

    trace: TraceContext

    def end(self, scope: RequestScope) -> None:
        """Ends the span with the request's status and outcome."""


class Tracer(Protocol):
    """Creates spans and exports them."""

    def begin(self, transport: str, method: str, incoming: TraceContext) -> RequestSpan:
        """Begins the span of a request with the trace context `incoming`."""

    def close(self) -> None:
        """Exports the remaining spans; may block for some seconds."""


@dataclass(frozen=True, slots=True)
class RequestOrigin:
    """Who sent a request; read only if the request is logged.

    Attributes:
        peer: returns the address at the other end of the connection; empty if it has none.
        values: returns all values of a header (or gRPC metadata) by its lower-case name.
    """

    peer: Callable[[], str]
    values: Callable[[str], Sequence[str]]


class RequestLog:
    """Opens and closes the scopes of requests."""

    def __init__(
        self,
        *,
        log_requests: bool = False,
        tracer: Tracer | None = None,
        proxies: TrustedProxies | None = None,
    ) -> None:
        """Creates a request log.

        Args:
            log_requests: whether each request writes a line to the access log.
            tracer: creates the spans; None: no tracing.
            proxies: whose forwarding headers are used; None: of no proxy.
        """
        self._log_requests = log_requests
        self._tracer = tracer
        self._proxies = proxies or TrustedProxies()

    @contextmanager
    def track(  # noqa: PLR0913 - the fields of a request's head
        self,
        transport: str,
        method: str,
        *,
        path: str = "",
        request_id: object = None,
        traceparents: Iterable[object] = (),
        tracestates: Iterable[object] = (),
        origin: RequestOrigin | None = None,
        quiet: bool = False,
    ) -> Iterator[RequestScope]:
        """Opens the scope of a request, as a context manager.

        Args:
            transport: "http" or "grpc".
            method: the HTTP method, or the full name of the gRPC method.
            path: of an HTTP request.
            request_id: sent by the client; kept if valid, otherwise generated.
            traceparents: all `traceparent` headers.
            tracestates: all `tracestate` headers.
            origin: who sent it, for the access log.
            quiet: True for probes: no access log line and no span.
        """
        trace = open_trace(traceparents, tracestates)
        span: RequestSpan | None = None
        if self._tracer is not None and not quiet:
            span = self._tracer.begin(transport, method, trace)
            trace = span.trace
        kept_id = valid_request_id(request_id) or new_request_id()
        logged = self._log_requests and not quiet
        listener = span if trace.sampled else None
        detailed = logged or listener is not None
        scope = RequestScope(
            transport, method, kept_id, trace, detailed=detailed, path=path, listener=listener
        )
        if logged and origin is not None:
            scope.client = self._proxies.client(origin.peer(), origin.values)
            scope.user_agent = ", ".join(origin.values("user-agent"))
        token = SCOPE.set(scope)
        try:
            yield scope
        finally:
            if logged:
                _access_log.info("request", **_access_fields(scope))
            SCOPE.reset(token)
            if span is not None:
                span.end(scope)

    def close(self) -> None:
        """Exports the remaining spans; may block for some seconds."""
        if self._tracer is not None:
            self._tracer.close()


def open_request_log(settings: Settings) -> RequestLog:
    """Creates the request log of a deployment.

    Raises:
        TracingUnavailable: if tracing is enabled and cannot be used.
    """
    return RequestLog(
        log_requests=settings.log_requests,
        tracer=_open_tracer(settings),
        proxies=TrustedProxies(settings.trusted_proxies),
    )


def _open_tracer(settings: Settings) -> Tracer | None:
    """Creates a tracer if tracing is enabled; OpenTelemetry is imported only then."""
    enabled_by = [name for name in _OTLP_VARIABLES if os.environ.get(name)]
    if settings.otlp_endpoint is not None:
        enabled_by = ["otlp_endpoint"]
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not enabled_by or disabled or os.environ.get("OTEL_TRACES_EXPORTER", "").strip() == "none":
        return None
    try:
        from service.observability.tracing import open_tracer  # noqa: PLC0415
    except ImportError as error:
        raise TracingUnavailable(
            f"{enabled_by[0]} enables tracing, which needs the extra `otel` "
            f"(pip install 'lite-detr-service[otel]'): {error}"
        ) from error
    try:
        return open_tracer(settings.otlp_endpoint)
    except ValueError as error:
        raise TracingUnavailable(str(error)) from error


def _access_fields(scope: RequestScope) -> dict[str, Any]:
    """The fields of a request's access log line, without its ids, which every line has."""
    fields: dict[str, Any] = {
        "transport": scope.transport,
        "method": scope.method,
        "status": scope.status,
        "duration_ms": round((time.monotonic() - scope.started) * 1000, 3),
    }
    for name in ("route", "protocol", "outcome"):
        if value := getattr(scope, name):
            fields[name] = value
    if scope.failure is not None:
        fields["code"], detail = scope.failure
        fields["detail"] = _printable(detail, _MAX_DETAIL)
    if scope.client:
        fields["client"] = scope.client
    if scope.key_name:
        fields["api_key"] = scope.key_name
    if scope.user_agent:
        fields["user_agent"] = _printable(scope.user_agent, _MAX_USER_AGENT)
    if scope.failed_images:
        fields["failed_images"] = scope.failed_images
    if scope.images:
        fields |= {"images": scope.images, "image_bytes": scope.num_bytes}
    if scope.images == 1 and scope.last_image is not None:
        fields["image_size"] = scope.last_image.size
        fields["timings_ms"] = scope.last_image.timings.rounded()
    if scope.encode_seconds:
        fields["encode_ms"] = round(scope.encode_seconds * 1000, 3)
    return fields


def _printable(text: str, limit: int) -> str:
    """Returns text of a client for a log line: without control characters, cut to `limit`."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(letter if letter.isprintable() else "?" for letter in cut)
