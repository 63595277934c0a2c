from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from service.observability.gpu_metrics import GpuCollector
from tests.support import nvml_standin
from tests.support.nvml_standin import GIB, NVMLError

STANDIN = "tests.support.nvml_standin"


@pytest.fixture
def registry() -> Iterator[CollectorRegistry]:
    registry = CollectorRegistry()
    GpuCollector(registry, STANDIN)
    yield registry
    nvml_standin.lost.clear()


def _value(registry: CollectorRegistry, name: str, device: str) -> float | None:
    return registry.get_sample_value(f"lite_detr_device_{name}", {"device": device})


def test_memory_and_utilisation_are_reported_by_device(registry: CollectorRegistry) -> None:
    assert _value(registry, "memory_used_bytes", "0") == GIB
    assert _value(registry, "memory_used_bytes", "1") == 2 * GIB
    assert _value(registry, "memory_total_bytes", "1") == 80 * GIB
    assert _value(registry, "utilisation_ratio", "0") == pytest.approx(0.37)


def test_a_value_that_a_device_does_not_report_is_omitted(registry: CollectorRegistry) -> None:
    assert _value(registry, "utilisation_ratio", "1") is None


def test_a_lost_device_omits_only_its_own_metrics(registry: CollectorRegistry) -> None:
    nvml_standin.lost.add(0)
    assert _value(registry, "memory_used_bytes", "0") is None
    assert _value(registry, "memory_used_bytes", "1") == 2 * GIB
    nvml_standin.lost.add(1)
    assert generate_latest(registry) == b""


def test_without_the_library_there_are_no_gpu_metrics() -> None:
    registry = CollectorRegistry()
    GpuCollector(registry, "no_such_module")
    assert list(registry.collect()) == []


def test_without_a_driver_there_are_no_gpu_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise NVMLError("Driver Not Loaded")

    library = ModuleType("driverless")
    library.nvmlInit = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "driverless", library)
    registry = CollectorRegistry()
    GpuCollector(registry, "driverless")
    assert list(registry.collect()) == []


def test_the_real_library_has_the_functions_that_are_called() -> None:
    library = pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    called = [name for name in vars(nvml_standin) if name.startswith("nvml")]
    assert len(called) == 5
    assert [name for name in called if not callable(getattr(library, name, None))] == []
