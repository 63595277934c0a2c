"""Running services shared by the tests of a module, and checked after each test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.images import solid_png
from tests.support.running import DEFAULTS, Service

SETTINGS = {
    "fake_per_image_ms": "0",
    "fake_base_ms": "0",
    "log_level": "info",
    "grpc_port": "0",
    "request_timeout_ms": "120000",
}
SHORT_TIMEOUTS = {
    "header_timeout_seconds": "2",
    "body_timeout_seconds": "2",
    "body_min_bytes_per_second": "100000",
}


@contextmanager
def _started(**settings: str) -> Iterator[Service]:
    service = Service(**(DEFAULTS | SETTINGS | settings))
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.kill()


def _check_unharmed(service: Service) -> None:
    """The service holds no slots, has replaced no engine, logged no errors, and still serves."""
    service.wait_for_metric("slots_in_use", 0)
    assert service.process.poll() is None
    assert sum("engine ready" in line for line in service.lines) == 1
    errors = [line for line in service.lines if '"level":"error"' in line or "Traceback" in line]
    assert not errors, errors[:5]
    response = service.http.post(f"{service.url}/detect", content=solid_png((1, 2, 3)))
    assert response.status_code == 200


@pytest.fixture(scope="module")
def running() -> Iterator[Service]:
    with _started() as service:
        yield service


@pytest.fixture(scope="module")
def running_with_short_timeouts() -> Iterator[Service]:
    with _started(**SHORT_TIMEOUTS) as service:
        yield service


@pytest.fixture
def service(running: Service) -> Iterator[Service]:
    yield running
    _check_unharmed(running)


@pytest.fixture
def impatient_service(running_with_short_timeouts: Service) -> Iterator[Service]:
    """A service with short timeouts for request heads and bodies."""
    yield running_with_short_timeouts
    _check_unharmed(running_with_short_timeouts)
