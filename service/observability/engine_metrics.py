"""Memory, CPU time and open files of the engine processes, read from /proc when Prometheus asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector


class EngineProcessCollector(Collector):
    """One set of process metrics for all engines, told apart by the label `engine`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Starts without engines."""
        self._readers: dict[str, ProcessCollector] = {}
        registry.register(self)

    def add(self, engine: str, pid: Callable[[], int | None]) -> None:
        """Adds an engine.

        Args:
            engine: its number.
            pid: of the process that runs it just then; None while there is none.
        """
        self._readers[engine] = ProcessCollector(
            namespace="lite_detr_engine",
            pid=lambda: pid() or "none",  # of no process: then there is nothing to tell
            registry=None,
        )

    def collect(self) -> Iterable[Metric]:
        """The families of all engines, each family once."""
        families: dict[str, Metric] = {}
        for engine, reader in self._readers.items():
            for read in reader.collect():
                family = families.setdefault(
                    read.name, Metric(read.name, read.documentation, read.type)
                )
                for sample in read.samples:
                    family.add_sample(sample.name, {"engine": engine}, sample.value)
        return families.values()
