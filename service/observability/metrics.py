"""What the service measures, in Prometheus' terms; every duration in seconds.

One registry of its own, so that several services (tests) can live in one process. Label sets are
bounded: protocols, error codes and stages are closed lists, nothing of a client's gets in.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client import Counter as _Counter
from prometheus_client import Gauge as _Gauge
from prometheus_client import Histogram as _Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as _OPENMETRICS_TYPE
from prometheus_client.openmetrics.exposition import generate_latest as _openmetrics_text
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

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
_RESULTS = {"ok": "ok", "cancelled": "cancelled"}  # any other outcome is an error
_OPENMETRICS = "application/openmetrics-text"
_PREFIX = "lite_detr_"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_RATIOS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)


class Metrics:
    """The meters, by name; rooms get it by constructor."""

    def __init__(self, max_batch_size: int = 8) -> None:
        """Makes all meters; `max_batch_size` bounds the histogram of batch sizes."""
        # Else each counter has a second series, that nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.statistics = Statistics()
        self._build_counters()
        self._build_histograms(max_batch_size)
        self._model = self._gauge(
            "model_info", "The model that serves", ("name", "version", "variant")
        )
        self._ends: dict[tuple[str, str], tuple[_Counter, _Histogram]] = {}
        self._engines = EngineProcessCollector(self.registry)
        self._gauge("start_time_seconds", "When this service started, Unix time").set(time.time())
        ProcessCollector(namespace="lite_detr_edge", registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def count_request(self, protocol: str, outcome: str) -> None:
        """Counts one request as it ends, and the time since its scope was opened.

        Args:
            protocol: of the adapter: "http", "grpc", "oip_http", "oip_grpc".
            outcome: "ok", "cancelled", "internal", or the code of an error.
        """
        ends = self._ends.get((protocol, outcome))
        if ends is None:
            result = _RESULTS.get(outcome, "error")
            ends = (
                self.requests.labels(protocol, outcome),
                self.request_seconds.labels(protocol, result),
            )
            self._ends[protocol, outcome] = ends
        counter, histogram = ends
        counter.inc()
        scope = current_scope()
        if scope is not None:
            scope.protocol, scope.outcome = protocol, outcome
            histogram.observe(time.monotonic() - scope.started, _exemplar(scope))

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Notes how long a stage of an adapter's own took, one that ends just now.

        Raises:
            KeyError: for a stage that is not one of `STAGES`.
        """
        self._stages[stage].observe(seconds)
        scope = current_scope()
        if scope is not None and scope.detailed:
            now = time.monotonic()
            scope.record_stage(StageInterval(stage, now - seconds, now))

    def observe_timings(self, timings: StageTimings) -> None:
        """Notes all stages of one answered image."""
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
        """Tells which model serves."""
        self._model.clear()
        self._model.labels(model.name, model.version, model.config.name).set(1)

    def add_gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Adds a gauge that is read when somebody asks."""
        self._gauge(name, help_text).set_function(read)

    def add_engine(self, pid: Callable[[], int | None], engine: str = "0") -> None:
        """Adds the memory and CPU time of an engine, whichever process runs it just then.

        Args:
            pid: of that process; None while there is none.
            engine: its number, for the label `engine`.
        """
        self._engines.add(engine, pid)

    def add_gpus(self) -> None:
        """Adds memory and utilisation of the GPUs, where the driver shows any."""
        GpuCollector(self.registry)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """What a scraper gets, and its content type.

        Args:
            accept: its Accept header. Only OpenMetrics has exemplars; who does not name it gets
                Prometheus' older text.
        """
        if _OPENMETRICS in accept:
            text: bytes = _openmetrics_text(self.registry)  # type: ignore[no-untyped-call]
            return text, _OPENMETRICS_TYPE
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4

    def _build_counters(self) -> None:
        self.requests = self._counter(
            "requests_total", "Answered requests", ("protocol", "outcome")
        )
        self.images = self._counter("images_total", "Images by what became of them", ("outcome",))
        self.refused = self._counter(
            "refused_total", "Images refused at admission, by error code", ("reason",)
        )
        self.cancelled = self._counter("cancelled_total", "Images whose client went away")
        self.expired = self._counter("expired_total", "Images whose deadline passed")
        self.replayed = self._counter("replayed_total", "Images run again after an engine died")
        self.engine_restarts = self._counter(
            "engine_restarts_total", "Engines replaced, by reason", ("reason",)
        )
        self.batch_failures = self._counter(
            "batch_failures_total", "Batches that an engine answered with a failure", ("failure",)
        )

    def _build_histograms(self, max_batch_size: int) -> None:
        stages = self._histogram("stage_seconds", "Time in a stage", _SECONDS, ("stage",))
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._image_stages = tuple(
            child.observe for stage, child in self._stages.items() if stage != "encode"
        )
        self.request_seconds = self._histogram(
            "request_seconds",
            "From a request's head to its answer, uploads and encoding included",
            _SECONDS,
            ("protocol", "result"),
        )
        sizes = [2**power for power in range(max_batch_size.bit_length() + 1)]
        self.batch_size = self._histogram("batch_size", "Images in a batch", sizes)
        self.padding_waste = self._histogram(
            "padding_waste_ratio", "Share of a batch's pixels that is padding", _RATIOS
        )
        self.batch_seconds = self._histogram(
            "batch_seconds",
            "From ringing the engine to its answer, queueing there excluded",
            _SECONDS,
        )

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


def _exemplar(scope: RequestScope | None) -> dict[str, str] | None:
    """The trace that a measurement belongs to, if somebody records it."""
    if scope is None or not scope.trace.sampled:
        return None
    return {"trace_id": scope.trace.trace_id}
