"""Memory and utilisation of the GPUs, asked of the driver (NVML) when Prometheus asks.

The edge has no torch and no CUDA context; NVML needs neither. Where there is no NVIDIA driver
there are no such metrics, and whatever goes wrong later costs these metrics and no scrape.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_LIBRARY = "pynvml"

_log = structlog.get_logger(__name__)


class GpuCollector(Collector):
    """Gauges by device; devices are numbered as the driver numbers them."""

    def __init__(self, registry: CollectorRegistry, library: str = _LIBRARY) -> None:
        """Finds the GPUs.

        Args:
            registry: where the gauges go.
            library: the module that speaks NVML.
        """
        self._nvml: Any = None
        self._devices: Sequence[Any] = ()
        try:
            self._nvml = importlib.import_module(library)
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
            self._devices = [self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        except Exception as error:  # no library, no driver, no permission: no GPU for us
            _log.debug("no GPU metrics", reason=f"{type(error).__name__}: {error}")
        if self._devices:
            registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Reads all devices; one that does not answer is left out."""
        used = _family("memory_used_bytes", "Memory of the GPU in use, by whatever process")
        total = _family("memory_total_bytes", "Memory of the GPU")
        busy = _family("utilisation_ratio", "Share of the last moments in which the GPU worked")
        for number, device in enumerate(self._devices):
            labels = [str(number)]
            try:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(device)
                used.add_metric(labels, memory.used)
                total.add_metric(labels, memory.total)
                percent = self._nvml.nvmlDeviceGetUtilizationRates(device).gpu
                busy.add_metric(labels, percent / 100)
            except Exception as error:
                _log.debug("a GPU does not answer", device=number, reason=str(error))
        return [family for family in (used, total, busy) if family.samples]


def _family(name: str, help_text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"lite_detr_device_{name}", help_text, labels=("device",))
