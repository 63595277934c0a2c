"""One running service for all tests of a module, checked after each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.images import solid_png
from tests.support.running import DEFAULTS, Service

TIGHT = {
    "fake_per_image_ms": "0",
    "fake_base_ms": "0",
    "log_level": "info",
    "grpc_port": "0",
    "header_timeout_seconds": "2",
    "body_timeout_seconds": "2",
    "body_min_bytes_per_second": "100000",
    "request_timeout_ms": "120000",
}


@pytest.fixture(scope="module")
def running() -> Iterator[Service]:
    service = Service(**(DEFAULTS | TIGHT))
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.kill()


@pytest.fixture
def service(running: Service) -> Iterator[Service]:
    """The service; after the test it must hold no slots, have logged no errors and still serve."""
    yield running
    running.wait_for_metric("slots_in_use", 0)
    assert running.process.poll() is None
    assert sum("engine ready" in line for line in running.lines) == 1  # the engine was not replaced
    errors = [line for line in running.lines if '"level":"error"' in line or "Traceback" in line]
    assert not errors, errors[:5]
    response = running.http.post(f"{running.url}/detect", content=solid_png((1, 2, 3)))
    assert response.status_code == 200
