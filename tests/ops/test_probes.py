"""The probes of the manifests, sent to a service as the kubelet sends them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.ops.rendered_chart import container, rendered
from tests.service.oip.test_kserve import RUNTIMES, objects
from tests.support.running import DEFAULTS, Service

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def passes(probe: dict[str, Any], service: Service) -> bool:
    """Whether a probe succeeds; its port is that of the container for HTTP or for gRPC."""
    if "httpGet" in probe:
        get = probe["httpGet"]
        assert get["port"] in ("http", 8080)
        assert get.get("scheme", "HTTP") == "HTTP"
        response = httpx.get(service.url + get["path"], timeout=probe["timeoutSeconds"])
        return 200 <= response.status_code < 400
    assert probe["grpc"]["port"] == 8081
    request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
    with grpc.insecure_channel(service.grpc_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        response = stub.Check(request, timeout=probe["timeoutSeconds"])
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def containers() -> Iterator[dict[str, Any]]:
    yield container(rendered())
    for runtime in objects(RUNTIMES).values():
        yield from runtime["containers"]


def results(service: Service) -> dict[str, set[bool]]:
    found = list(containers())
    assert len(found) == 3
    return {name: {passes(each[name], service) for each in found} for name in PROBES}


@pytest.mark.slow
def test_a_drain_fails_readiness_and_not_liveness() -> None:
    service = Service(**(DEFAULTS | {"drain_delay_seconds": "120"}))
    try:
        service.wait_until_ready()
        expected = {name: {True} for name in PROBES}
        assert results(service) == expected
        service.process.send_signal(signal.SIGTERM)
        expected["readinessProbe"] = {False}
        _wait_until(lambda: results(service) == expected)
    finally:
        service.kill()


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
