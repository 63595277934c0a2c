"""Memory, CPU time and open files of the engine processes, read from /proc at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector


class EngineProcessCollector(Collector):
    """Process metrics of all engines, with the label `engine`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Registers a collector without engines."""
        self._readers: dict[str, ProcessCollector] = {}
        registry.register(self)

    def add(self, engine: str, pid: Callable[[], int | None]) -> None:
        """Adds an engine.

        Args:
            engine: its number, the value of the label.
            pid: returns the current process id; None while there is no process.
        """
        self._readers[engine] = ProcessCollector(
            namespace="lite_detr_engine",
            pid=lambda: pid() or "none",  # an invalid id: no samples
            registry=None,
        )

    def collect(self) -> Iterable[Metric]:
        """Returns each metric family once, with the samples of all engines."""
        families: dict[str, Metric] = {}
        for engine, reader in self._readers.items():
            for read in reader.collect():
                family = families.setdefault(
                    read.name, Metric(read.name, read.documentation, read.type)
                )
                for sample in read.samples:
                    family.add_sample(sample.name, {"engine": engine}, sample.value)
        return families.values()
