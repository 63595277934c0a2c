"""What the service measures, in Prometheus' terms; every duration in seconds.

One registry of its own, so that several services (tests) can live in one process. Label sets are
bounded: protocols, error codes and stages are closed lists, nothing of a client's gets in.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client import Counter as _Counter
from prometheus_client import Gauge as _Gauge
from prometheus_client import Histogram as _Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from model.weights_file import ModelInfo
from service.statistics import Statistics

STAGES = ("read", "decode", "queue", "assemble", "forward", "postprocess", "encode", "total")
_PREFIX = "lite_detr_"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_RATIOS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)


class Metrics:
    """The meters, by name; rooms get it by constructor."""

    def __init__(self, max_batch_size: int = 8) -> None:
        """Makes all meters; `max_batch_size` bounds the histogram of batch sizes."""
        self.registry = CollectorRegistry()
        self.statistics = Statistics()
        self._build_counters()
        self._build_histograms(max_batch_size)
        self._model = self._gauge(
            "model_info", "The model that serves", ("name", "version", "variant")
        )
        self._gauge("start_time_seconds", "When this service started, Unix time").set(time.time())
        ProcessCollector(namespace="lite_detr_edge", registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def count_request(self, protocol: str, outcome: str) -> None:
        """Counts one answered request.

        Args:
            protocol: of the adapter: "http", "grpc", "oip_http", "oip_grpc".
            outcome: "ok", "cancelled", "internal", or the code of an error.
        """
        self.requests.labels(protocol, outcome).inc()

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Notes how long one stage of `STAGES` took for one request.

        Raises:
            KeyError: for a stage that is not one of them.
        """
        self._stages[stage].observe(seconds)

    def describe_model(self, model: ModelInfo) -> None:
        """Tells which model serves."""
        self._model.clear()
        self._model.labels(model.name, model.version, model.config.name).set(1)

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Adds a gauge that is read when somebody asks."""
        self._gauge(name, help_text).set_function(read)

    def watch_engine(self, pid: Callable[[], int | None]) -> None:
        """Adds the memory and CPU time of the engine process, whichever runs just then."""
        ProcessCollector(
            namespace="lite_detr_engine",
            pid=lambda: pid() or "none",  # of no process: then there is nothing to tell
            registry=self.registry,
        )

    def render(self) -> tuple[bytes, str]:
        """The text that a scraper gets, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

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
