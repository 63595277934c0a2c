"""Memory and utilisation of the GPUs, read from the driver (NVML) at each scrape.

NVML needs no torch and no CUDA context, which the edge does not have. Without an NVIDIA driver
these metrics are absent. Later errors omit these metrics and do not fail the scrape.
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
    """Gauges with the label `device`, the driver's number of the GPU."""

    def __init__(self, registry: CollectorRegistry, library: str = _LIBRARY) -> None:
        """Finds the GPUs.

        Args:
            registry: where the collector is registered, if there is a GPU.
            library: name of the NVML module.
        """
        self._nvml: Any = None
        self._devices: Sequence[Any] = ()
        try:
            self._nvml = importlib.import_module(library)
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
            self._devices = [self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        except Exception as error:  # no library, driver or permission
            _log.debug("no GPU metrics", reason=f"{type(error).__name__}: {error}")
        if self._devices:
            registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Reads all devices; omits those that cannot be read."""
        used = _family("memory_used_bytes", "Used memory of the GPU, by all processes")
        total = _family("memory_total_bytes", "Total memory of the GPU")
        busy = _family(
            "utilisation_ratio", "Share of the driver's last sample period in which a kernel ran"
        )
        for number, device in enumerate(self._devices):
            labels = [str(number)]
            try:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(device)
                used.add_metric(labels, memory.used)
                total.add_metric(labels, memory.total)
                percent = self._nvml.nvmlDeviceGetUtilizationRates(device).gpu
                busy.add_metric(labels, percent / 100)
            except Exception as error:
                _log.debug("cannot read a GPU", device=number, reason=str(error))
        return [family for family in (used, total, busy) if family.samples]


def _family(name: str, help_text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"lite_detr_device_{name}", help_text, labels=("device",))
