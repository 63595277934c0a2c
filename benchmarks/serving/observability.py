"""CPU time of observability per request, by what is switched on.

    python -m benchmarks.serving.observability

Each row performs the observability work of one request with one image and nothing else (no
decoding, no network). Rows are measured in alternation; the best of several rounds counts. Log
lines go to /dev/null. Spans are created and batched; the exporter drops them.
"""

from __future__ import annotations

import os
import sys
import timeit
from collections.abc import Callable, Sequence

from service.observability.logs import configure_logs
from service.observability.metrics import Metrics
from service.observability.request_log import RequestLog
from service.observability.request_scope import ImageRecord, ImageTimes
from service.types import StageTimings

_REQUESTS = 2000  # per round
_ROUNDS = 7
_SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_TIMINGS = StageTimings(0.6, 12.3, 4.5, 0.6, 0.0, 30.1, 0.5, 48.6)
_ENGINE_MS = {"assemble": 0.6, "copy": 0.0, "forward": 30.1, "postprocess": 0.4}
_TIMES = ImageTimes(1.0, (1.0005, 1.0128), 1.0173, _ENGINE_MS, (1.0485, 1.0486))


def main() -> None:
    """Measures and prints a table."""
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    configure_logs("info", "json")
    metrics = Metrics()
    rows: dict[str, Callable[[], object]] = {
        "request names and metrics": _request(RequestLog(), metrics),
        "the same, with exemplars": _request(RequestLog(), metrics, [_SAMPLED]),
        "and a log line (--log-requests)": _request(RequestLog(log_requests=True), metrics),
    }
    spans = _spans()
    if spans is not None:
        rows["spans and exemplars (--otlp-endpoint)"] = _request(spans, metrics, [_SAMPLED])
    best = dict.fromkeys(rows, float("inf"))
    for _ in range(_ROUNDS):
        for name, request in rows.items():
            seconds = timeit.timeit(request, number=_REQUESTS)
            best[name] = min(best[name], seconds / _REQUESTS)
    base = next(iter(best.values()))
    print(f"{'observability':40} {'us/request':>12} {'ratio':>6}")
    for name, seconds in best.items():
        print(f"{name:40} {seconds * 1e6:12.1f} {seconds / base:6.2f}")


def _request(
    request_log: RequestLog, metrics: Metrics, traceparents: Sequence[str] = ()
) -> Callable[[], object]:
    def request() -> None:
        with request_log.track("http", "POST", path="/detect", traceparents=traceparents) as scope:
            scope.route, scope.status = "/detect", 200
            if scope.detailed:
                scope.record_image(ImageRecord("r", 123_456, (1280, 960), _TIMINGS, _TIMES))
            metrics.observe_timings(_TIMINGS)
            metrics.observe_stage("encode", 0.0001)
            metrics.count_request("http", "ok")

    return request


def _spans() -> RequestLog | None:
    """A request log whose spans are dropped by the exporter; None without the extra `otel`."""
    try:
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import (  # noqa: PLC0415
            BatchSpanProcessor,
            SpanExporter,
            SpanExportResult,
        )

        from service.observability.tracing import OtlpTracer  # noqa: PLC0415
    except ImportError:
        return None

    class DroppingExporter(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(DroppingExporter()))
    return RequestLog(tracer=OtlpTracer(provider))


if __name__ == "__main__":
    main()
