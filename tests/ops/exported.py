"""The metrics that a running service with the fake device exports."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import cache

from prometheus_client.parser import text_string_to_metric_families

from service.core.detector import Detector
from service.observability.gpu_metrics import GpuCollector
from service.observability.request_log import RequestLog
from service.types import DetectOptions
from tests.support.fake_service import fake_settings, open_fake_detector
from tests.support.images import solid_png

_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
_OF_HISTOGRAMS = {"le"}


@dataclass(frozen=True)
class Family:
    """A metric family and the labels of its samples."""

    name: str
    kind: str
    help_text: str
    labels: frozenset[str]

    @property
    def series(self) -> tuple[str, ...]:
        return tuple(self.name + suffix for suffix in _SUFFIXES.get(self.kind, ("",)))


@cache
def exported_families() -> tuple[Family, ...]:
    """All metric families of a running service with a GPU, in the order of /metrics."""
    return tuple(_parse(asyncio.run(_render())))


def exported_series() -> frozenset[str]:
    """The names of all series that queries may select."""
    return frozenset(name for family in exported_families() for name in family.series)


async def _render() -> str:
    settings = fake_settings(slots=2, decode_threads=1)
    async with open_fake_detector(settings) as detector:
        metrics = detector.metrics
        if not any(family.name.startswith("lite_detr_device_") for family in _collected(detector)):
            GpuCollector(metrics.registry, "tests.support.nvml_standin")
        with RequestLog().track("http", "POST"):
            await detector.detect(solid_png((1, 2, 3)), DetectOptions(), request_id="r")
            metrics.count_request("http", "ok")
            await asyncio.sleep(0)  # the image is counted in a later callback
        # Metrics that appear only after failures or explanations.
        metrics.refused.labels("overloaded").inc(0)
        metrics.engine_restarts.labels("exit").inc(0)
        metrics.batch_failures.labels("error").inc(0)
        metrics.explanations.labels("ok").inc(0)
        metrics.decoder_restarts.labels("crash").inc(0)
        body, _ = metrics.render()
    return body.decode()


def _collected(detector: Detector) -> list[Family]:
    return _parse(detector.metrics.render()[0].decode())


def _parse(text: str) -> list[Family]:
    families = []
    for family in text_string_to_metric_families(text):
        labels = frozenset(name for sample in family.samples for name in sample.labels)
        # The parser removes `_total`, which is part of the name in queries.
        name = f"{family.name}_total" if family.type == "counter" else family.name
        kept = labels - (_OF_HISTOGRAMS if family.type == "histogram" else set())
        families.append(Family(name, family.type, family.documentation, kept))
    return families
