"""Spans to an OpenTelemetry collector (OTLP over HTTP); loaded only where traces are asked for.

    server span (the request)
      |- read
      |- detect (one an image) - decode - queue - assemble - copy - forward - postprocess
      '- encode

Spans of stages are made when an image has its answer, with the times at which its stages really
ran: the clock is the same in edge and engine. Sampling, batching, headers and names of the service
are OpenTelemetry's own business, set by its OTEL_* variables.
"""

from __future__ import annotations

import os
import threading
import time
from importlib.metadata import PackageNotFoundError, version

from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from service.observability.request_scope import ImageRecord, RequestScope, StageInterval
from service.observability.trace_context import TraceContext

_PACKAGE = "lite-detr-service"
_DEFAULT_NAME = "lite-detr"
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_LAST_SPANS_SECONDS = 5.0
_SERVER_ERROR = 500
# The gRPC statuses that the semantic conventions count as errors of a server.
_RPC_ERRORS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)


class ServerSpan:
    """The span of one request, and the spans of what is done for it."""

    def __init__(
        self, tracer: otel.Tracer, transport: str, name: str, parent: TraceContext
    ) -> None:
        """Begins; a trace that began here has no parent, and OpenTelemetry decides on sampling."""
        self._tracer = tracer
        self._clock_ns = time.time_ns() - time.monotonic_ns()  # monotonic -> Unix time
        span_name = "HTTP" if transport == "http" else name  # HTTP's is known at the end
        self._span = tracer.start_span(span_name, _remote(parent), SpanKind.SERVER)
        self._inside = otel.set_span_in_context(self._span)
        context = self._span.get_span_context()
        self.trace = TraceContext(
            trace_id=f"{context.trace_id:032x}",
            span_id=f"{context.span_id:016x}",
            parent_id=parent.parent_id,
            flags=int(context.trace_flags),
            tracestate=context.trace_state.to_header(),
        )

    def image_done(self, image: ImageRecord) -> None:
        """Adds the span of an image, with its stages below it."""
        width, height = image.size
        span = self._tracer.start_span(
            "detect",
            self._inside,
            attributes={
                "lite_detr.request_id": image.request_id,
                "lite_detr.image.bytes": image.num_bytes,
                "lite_detr.image.width": width,
                "lite_detr.image.height": height,
            },
            start_time=self._ns(image.times.accepted),
        )
        below = otel.set_span_in_context(span)
        for mark in image.times.intervals():
            self._add(mark, below)
        span.end(self._ns(image.times.select[1]))

    def stage_done(self, mark: StageInterval) -> None:
        """Adds the span of a stage of the adapter's own."""
        self._add(mark, self._inside)

    def end(self, scope: RequestScope) -> None:
        """Names the span by the semantic conventions, and ends it."""
        span = self._span
        if not span.is_recording():
            return
        failed = False
        if scope.transport == "http":
            span.update_name(f"{scope.method} {scope.route}".rstrip())
            failed = isinstance(scope.status, int) and scope.status >= _SERVER_ERROR
            _describe_http(span, scope)
        else:
            failed = scope.status in _RPC_ERRORS
            _describe_rpc(span, scope)
        span.set_attribute("lite_detr.request_id", scope.request_id)
        if scope.outcome:
            span.set_attribute("lite_detr.outcome", scope.outcome)
        if failed:
            span.set_attribute("error.type", scope.outcome or str(scope.status))
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def _add(self, mark: StageInterval, parent: Context) -> None:
        span = self._tracer.start_span(mark.stage, parent, start_time=self._ns(mark.started))
        span.end(self._ns(mark.ended))

    def _ns(self, monotonic: float) -> int:
        return round(monotonic * 1e9) + self._clock_ns


class OtlpTracer:
    """Makes spans of requests and sends them to a collector, from a thread of its own."""

    def __init__(self, provider: TracerProvider) -> None:
        """Uses a provider, which `close` shuts down."""
        self._provider = provider
        self._tracer = provider.get_tracer(_PACKAGE, _version())

    def begin(self, transport: str, method: str, incoming: TraceContext) -> ServerSpan:
        """Begins the span of a request."""
        return ServerSpan(self._tracer, transport, method, incoming)

    def close(self) -> None:
        """Sends what is left; gives up after some seconds where the collector does not answer."""
        # OpenTelemetry would retry for longer than a service may take to end.
        last = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(_LAST_SPANS_SECONDS)


def open_tracer(endpoint: str | None) -> OtlpTracer:
    """Prepares sending.

    Args:
        endpoint: base URL of a collector; None: as the OTEL_* variables say.

    Raises:
        ValueError: where those ask for a protocol that is not spoken here.
    """
    if endpoint is None:
        _check_protocol()
        exporter = OTLPSpanExporter()
    else:
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return OtlpTracer(provider)


def _check_protocol() -> None:
    for variable in _PROTOCOL_VARIABLES:
        protocol = os.environ.get(variable)
        if protocol and protocol != _PROTOCOL:
            raise ValueError(f"{variable}={protocol}: traces are sent as {_PROTOCOL} only")
        if protocol:
            return


def _resource() -> Resource:
    """Who sends: what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes first."""
    given = Resource.create()
    if str(given.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        given = given.merge(Resource({SERVICE_NAME: _DEFAULT_NAME}))
    return Resource({SERVICE_VERSION: _version()}).merge(given)


def _version() -> str:
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:  # run from a folder that nobody installed
        return "unknown"


def _remote(parent: TraceContext) -> Context:
    """OpenTelemetry's context for a client's span; an empty one where the trace begins here."""
    if parent.parent_id is None:
        return Context()
    state = TraceState.from_header([parent.tracestate]) if parent.tracestate else None
    context = SpanContext(
        trace_id=int(parent.trace_id, 16),
        span_id=int(parent.parent_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(parent.flags),
        trace_state=state,
    )
    return otel.set_span_in_context(NonRecordingSpan(context), Context())


def _describe_http(span: Span, scope: RequestScope) -> None:
    span.set_attribute("http.request.method", scope.method)
    span.set_attribute("url.path", scope.path)
    span.set_attribute("url.scheme", "http")
    if scope.route:
        span.set_attribute("http.route", scope.route)
    if scope.status is not None:
        span.set_attribute("http.response.status_code", scope.status)


def _describe_rpc(span: Span, scope: RequestScope) -> None:
    span.set_attribute("rpc.system.name", "grpc")
    span.set_attribute("rpc.method", scope.method)
    if scope.status is not None:
        span.set_attribute("rpc.response.status_code", scope.status)
