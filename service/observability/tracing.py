"""Exports spans to an OpenTelemetry collector by OTLP over HTTP; imported only if enabled.

    server span (the request)
      |- read
      |- detect (one per image) - decode - queue - assemble - copy - forward - postprocess
      '- encode

The spans of an image's stages are created when the image is complete, with the times at which the
stages ran; edge and engine use the same clock. Sampling, batching, headers and the service's name
are configured with OpenTelemetry's OTEL_* variables.
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
# The gRPC statuses that are server errors by the semantic conventions.
_RPC_ERRORS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)


class ServerSpan:
    """The span of one request and its child spans."""

    def __init__(
        self, tracer: otel.Tracer, transport: str, name: str, parent: TraceContext
    ) -> None:
        """Begins the span; without a parent, OpenTelemetry's sampler decides on recording."""
        self._tracer = tracer
        # Offset from monotonic to Unix time, also for this span: one clock for parent and children.
        self._clock_ns = time.time_ns() - time.monotonic_ns()
        span_name = "HTTP" if transport == "http" else name  # HTTP: the route is known at the end
        self._span = tracer.start_span(
            span_name, _remote(parent), SpanKind.SERVER, start_time=self._ns(time.monotonic())
        )
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
        """Adds the span of an image and of its stages."""
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
        for interval in image.times.intervals():
            self._add(interval, below)
        span.end(self._ns(image.times.select[1]))

    def stage_done(self, interval: StageInterval) -> None:
        """Adds the span of a stage of the adapter."""
        self._add(interval, self._inside)

    def end(self, scope: RequestScope) -> None:
        """Sets name and attributes by the semantic conventions, and ends the span."""
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
        span.end(self._ns(time.monotonic()))

    def _add(self, interval: StageInterval, parent: Context) -> None:
        span = self._tracer.start_span(
            interval.stage, parent, start_time=self._ns(interval.started)
        )
        span.end(self._ns(interval.ended))

    def _ns(self, monotonic: float) -> int:
        return round(monotonic * 1e9) + self._clock_ns


class OtlpTracer:
    """Creates the spans of requests; a background thread exports them."""

    def __init__(self, provider: TracerProvider) -> None:
        """Creates a tracer; `close` shuts the provider down."""
        self._provider = provider
        self._tracer = provider.get_tracer(_PACKAGE, _version())

    def begin(self, transport: str, method: str, incoming: TraceContext) -> ServerSpan:
        """Begins the span of a request."""
        return ServerSpan(self._tracer, transport, method, incoming)

    def close(self) -> None:
        """Exports the remaining spans; gives up after some seconds."""
        # OpenTelemetry retries for longer than a service may take to end.
        last = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        last.start()
        last.join(_LAST_SPANS_SECONDS)


def open_tracer(endpoint: str | None) -> OtlpTracer:
    """Creates a tracer that exports to a collector.

    Args:
        endpoint: base URL of the collector; None: from the OTEL_* variables.

    Raises:
        ValueError: if the variables name an unsupported protocol.
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
            raise ValueError(f"{variable}={protocol}: only {_PROTOCOL} is supported")
        if protocol:
            return


def _resource() -> Resource:
    """The resource; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence."""
    given = Resource.create()
    if str(given.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        given = given.merge(Resource({SERVICE_NAME: _DEFAULT_NAME}))
    return Resource({SERVICE_VERSION: _version()}).merge(given)


def _version() -> str:
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _remote(parent: TraceContext) -> Context:
    """Returns the context of the client's span; an empty one if the trace begins here."""
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
