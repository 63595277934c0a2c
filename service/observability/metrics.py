"""The Prometheus metrics of the service; durations are in seconds.

Each service has its own registry, so that tests can run several in one process. Label values come
from fixed lists (protocols, error codes, stages), never from clients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client import Counter as _Counter
from prometheus_client import Gauge as _Gauge
from prometheus_client import Histogram as _Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as _OPENMETRICS_TYPE
from prometheus_client.openmetrics.exposition import generate_latest as _openmetrics_text
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from model.weights.info import ModelInfo
from service.observability.engine_metrics import EngineProcessCollector
from service.observability.gpu_metrics import GpuCollector
from service.observability.request_scope import RequestScope, StageInterval, current_scope
from service.observability.statistics import Statistics
from service.types import StageTimings

STAGES = (
    "read",
    "decode",
    "queue",
    "assemble",
    "copy",
    "forward",
    "postprocess",
    "encode",
    "total",
)
_RESULTS = {"ok": "ok", "cancelled": "cancelled"}  # all other outcomes are errors
_OPENMETRICS = "application/openmetrics-text"
_PREFIX = "lite_detr_"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_RATIOS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)


class Metrics:
    """The counters, gauges and histograms of a service."""

    def __init__(self, max_batch_size: int = 8) -> None:
        """Creates all metrics; `max_batch_size` sets the range of the batch sizes."""
        # Otherwise each counter and histogram has a second series, `_created`.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.statistics = Statistics()
        self._build_counters()
        self._build_histograms(max_batch_size)
        self._model = self._gauge(
            "model_info", "The served model; always 1", ("name", "version", "variant")
        )
        self._request_metrics: dict[tuple[str, str], tuple[_Counter, _Histogram]] = {}
        self._engines = EngineProcessCollector(self.registry)
        self._gauge("start_time_seconds", "Start time of the service, Unix time").set(time.time())
        ProcessCollector(namespace="lite_detr_edge", registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def count_request(self, protocol: str, outcome: str) -> None:
        """Counts a request at its end, and observes its duration.

        Args:
            protocol: the adapter: "http", "grpc", "oip_http", "oip_grpc", or the name of a cloud.
            outcome: "ok", "cancelled", "internal", or an error code.
        """
        found = self._request_metrics.get((protocol, outcome))
        if found is None:
            result = _RESULTS.get(outcome, "error")
            found = (
                self.requests.labels(protocol, outcome),
                self.request_seconds.labels(protocol, result),
            )
            self._request_metrics[protocol, outcome] = found
        counter, histogram = found
        counter.inc()
        scope = current_scope()
        if scope is not None:
            scope.protocol, scope.outcome = protocol, outcome
            histogram.observe(time.monotonic() - scope.started, _exemplar(scope))

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Observes a stage of the adapter that has just ended: "read" or "encode".

        Raises:
            KeyError: if it is not one of `STAGES`.
        """
        self._stages[stage].observe(seconds)
        scope = current_scope()
        if scope is not None and scope.detailed:
            now = time.monotonic()
            scope.record_stage(StageInterval(stage, now - seconds, now))

    def observe_timings(self, timings: StageTimings) -> None:
        """Observes all stages of a completed image."""
        exemplar = _exemplar(current_scope())
        read, decode, queue, assemble, copy, forward, postprocess, total = self._image_stages
        read(timings.read / 1000)
        decode(timings.decode / 1000)
        queue(timings.queue / 1000, exemplar)
        assemble(timings.assemble / 1000)
        copy(timings.copy / 1000)
        forward(timings.forward / 1000, exemplar)
        postprocess(timings.postprocess / 1000)
        total(timings.total / 1000, exemplar)

    def set_model(self, model: ModelInfo) -> None:
        """Sets the served model."""
        self._model.clear()
        self._model.labels(model.name, model.version, model.config.name).set(1)

    def add_gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Adds a gauge that calls `read` at each scrape."""
        self._gauge(name, help_text).set_function(read)

    def add_optional_gauge(
        self, name: str, help_text: str, read: Callable[[], float | None]
    ) -> None:
        """Adds a gauge that calls `read` at each scrape and has no sample if that returns None."""
        self.registry.register(_OptionalGauge(_PREFIX + name, help_text, read))

    def add_engine(self, pid: Callable[[], int | None], engine: str = "0") -> None:
        """Adds the process metrics of an engine.

        Args:
            pid: returns the id of its current process; None while there is none.
            engine: its number, the value of the label `engine`.
        """
        self._engines.add(engine, pid)

    def add_gpus(self) -> None:
        """Adds memory and utilisation of the GPUs, if the driver reports any."""
        GpuCollector(self.registry)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Returns the exposition and its content type.

        Args:
            accept: the scraper's Accept header. OpenMetrics, which has exemplars, is returned if
                it is named there; otherwise Prometheus' text format.
        """
        if _OPENMETRICS in accept:
            text: bytes = _openmetrics_text(self.registry)  # type: ignore[no-untyped-call]
            return text, _OPENMETRICS_TYPE
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4

    def _build_counters(self) -> None:
        self.requests = self._counter(
            "requests_total", "Completed requests", ("protocol", "outcome")
        )
        self.images = self._counter("images_total", "Images by outcome", ("outcome",))
        self.refused = self._counter(
            "refused_total", "Images refused at admission, by error code", ("reason",)
        )
        self.cancelled = self._counter(
            "cancelled_total", "Images whose client disconnected or cancelled"
        )
        self.expired = self._counter("expired_total", "Images whose deadline passed")
        self.replayed = self._counter("replayed_total", "Images retried after an engine ended")
        self.decoder_restarts = self._counter(
            "decoder_restarts_total", "Decoder processes replaced, by reason", ("reason",)
        )
        self.log_lines_lost = self._counter(
            "log_lines_lost_total", "Log lines that could not be written"
        )
        self.engine_restarts = self._counter(
            "engine_restarts_total", "Engine restarts, by reason", ("reason",)
        )
        self.keys_refused = self._counter(
            "keys_refused_total",
            "Requests refused for their API key, by error code",
            ("protocol", "reason"),
        )
        for protocol in ("http", "grpc"):
            for reason in ("unauthenticated", "forbidden"):
                self.keys_refused.labels(protocol, reason)  # 0 from the start, for rates
        self.explanations = self._counter(
            "explanations_total", "Requests with format=explain, by outcome", ("outcome",)
        )
        self.batch_failures = self._counter(
            "batch_failures_total", "Batches for which an engine reported a failure", ("failure",)
        )

    def _build_histograms(self, max_batch_size: int) -> None:
        stages = self._histogram("stage_seconds", "Time in a stage", _SECONDS, ("stage",))
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._image_stages = tuple(
            child.observe for stage, child in self._stages.items() if stage != "encode"
        )
        self.request_seconds = self._histogram(
            "request_seconds",
            "Duration of a request, upload and encoding included",
            _SECONDS,
            ("protocol", "result"),
        )
        sizes = [2**power for power in range(max_batch_size.bit_length() + 1)]
        self.batch_size = self._histogram("batch_size", "Images in a batch", sizes)
        self.tile_grid_size = self._histogram(
            "tile_grid_size",
            "Tiles of an image with the option tile; 0: the whole image sufficed",
            [0, 2, 4, 8, 16, 32, 64, 128, 256],
        )
        self.padding_waste = self._histogram(
            "padding_waste_ratio", "Share of a batch's pixels that is padding", _RATIOS
        )
        self.batch_seconds = self._histogram(
            "batch_seconds",
            "Run time of a batch in the engine, the time it was staged excluded",
            _SECONDS,
        )
        self.explanation_seconds = self._histogram(
            "explanation_seconds",
            "Time that an explanation takes in addition to its detection",
            _SECONDS,
            ("stage",),
        )
        for stage in ("engine", "draw"):
            self.explanation_seconds.labels(stage)  # 0 from the start

    def _counter(self, name: str, help_text: str, labels: tuple[str, ...] = ()) -> _Counter:
        return _Counter(_PREFIX + name, help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str, labels: tuple[str, ...] = ()) -> _Gauge:
        return _Gauge(_PREFIX + name, help_text, labels, registry=self.registry)

    def _histogram(
        self,
        name: str,
        help_text: str,
        buckets: tuple[float, ...] | list[int],
        labels: tuple[str, ...] = (),
    ) -> _Histogram:
        return _Histogram(
            _PREFIX + name, help_text, labels, buckets=buckets, registry=self.registry
        )


class _OptionalGauge(Collector):
    """A gauge that may have no value."""

    def __init__(self, name: str, help_text: str, read: Callable[[], float | None]) -> None:
        self._name, self._help_text, self._read = name, help_text, read

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Returns the family without samples, as `read` cannot be called yet."""
        return [GaugeMetricFamily(self._name, self._help_text)]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Returns the family, with a sample if there is a value."""
        return [GaugeMetricFamily(self._name, self._help_text, value=self._read())]


def _exemplar(scope: RequestScope | None) -> dict[str, str] | None:
    """Returns the exemplar for a request whose trace is sampled."""
    if scope is None or not scope.trace.sampled:
        return None
    return {"trace_id": scope.trace.trace_id}
