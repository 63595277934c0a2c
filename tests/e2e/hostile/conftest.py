"""One running service for the tests of a module, and the proof that they left it as it was."""

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
    """The service; afterwards it must hold nothing, have said nothing bad and still answer."""
    yield running
    running.wait_for_metric("slots_in_use", 0)
    assert running.process.poll() is None
    assert sum("engine ready" in line for line in running.lines) == 1  # and none replaced it
    bad = [line for line in running.lines if '"level":"error"' in line or "Traceback" in line]
    assert not bad, bad[:5]
    answer = running.http.post(f"{running.url}/detect", content=solid_png((1, 2, 3)))
    assert answer.status_code == 200
