"""Connections that send nothing: bounded in number and time, and of no harm to others."""

from __future__ import annotations

import os
import socket
import time

import pytest

from lite_detr_client import GrpcClient
from tests.support.images import solid_png
from tests.support.running import DEFAULTS, Service

CONNECTIONS = 64
SETTINGS = {
    "grpc_port": "0",
    "max_connections": str(CONNECTIONS),
    "header_timeout_seconds": "1",
    "grpc_max_idle_seconds": "1",
}


def _open_files(service: Service) -> int:
    return len(os.listdir(f"/proc/{service.process.pid}/fd"))


@pytest.mark.slow
def test_idle_grpc_connections_are_limited_and_closed() -> None:
    service = Service(**(DEFAULTS | SETTINGS))
    idle: list[socket.socket] = []
    try:
        service.wait_until_ready()
        host, _, port = service.grpc_address.rpartition(":")
        before = _open_files(service)
        idle += [socket.create_connection((host, int(port)), 60) for _ in range(6 * CONNECTIONS)]
        # A client that tries again gets in as soon as idle connections are closed.
        with GrpcClient(service.grpc_address, timeout_s=120) as client:
            deadline = time.monotonic() + 120
            while not client.ready():
                assert time.monotonic() < deadline
            assert client.detect(solid_png((1, 2, 3))).width == 64
        assert service.http.get(f"{service.url}/readyz").status_code == 200
        deadline = time.monotonic() + 120
        while _open_files(service) > before + CONNECTIONS:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for connection in idle:
            connection.close()
        service.kill()
