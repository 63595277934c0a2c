"""The image's health check against live, failing and absent services, and with TLS."""

from __future__ import annotations

import os
import runpy
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from service.clouds.deployment import settings_for_cloud
from service.settings import load_settings
from tests.support.certificates import Authority
from tests.support.ports import free_port
from tests.support.repository import ROOT


@contextmanager
def responding(status: int, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Runs a server whose /healthz has the given status; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Does not log requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def check(port: int, **settings: str) -> int:
    environment = {key: val for key, val in os.environ.items() if not key.startswith("LITE_DETR_")}
    environment |= {f"LITE_DETR_{name.upper()}": value for name, value in settings.items()}
    argv = [sys.executable, str(ROOT / "docker" / "health_check.py")]
    environment["LITE_DETR_HTTP_PORT"] = str(port)
    return subprocess.run(argv, env=environment, capture_output=True, check=False).returncode


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
def test_check_follows_the_status_of_healthz(status: int, expected: int) -> None:
    with responding(status) as port:
        assert check(port) == expected


@pytest.mark.parametrize(
    ("variables", "port"),
    [
        ({}, 8000),
        ({"PORT": "9000"}, 9000),
        ({"PORT": "9000", "LITE_DETR_HTTP_PORT": "9001"}, 9001),
        ({"PORT": "9000", "LITE_DETR_CLOUD": "none"}, 8000),
        ({"PORT": "9000", "LITE_DETR_CLOUD": "azure"}, 8000),
        ({"PORT": "9000", "LITE_DETR_CLOUD": "vertex"}, 8080),
        ({"AIP_HTTP_PORT": "9002", "PORT": "9000"}, 9002),
        ({"AIP_HEALTH_ROUTE": "/health", "PORT": "9000"}, 8080),
        ({"SAGEMAKER_SAFE_PORT_RANGE": "9100-9200"}, 8080),
        ({"LITE_DETR_CLOUD": "sagemaker"}, 8080),
        ({"LITE_DETR_CLOUD": "cloud-run"}, 8080),
        ({"LITE_DETR_HTTP_PORT": "tcp://10.0.0.1:8000"}, 8000),
        ({"LITE_DETR_HTTP_PORT": "tcp://10.0.0.1:8000", "PORT": "9000"}, 9000),
    ],
)
def test_check_uses_the_port_of_the_service(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], port: int
) -> None:
    for name in ("PORT", "LITE_DETR_HTTP_PORT", "LITE_DETR_CLOUD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert settings_for_cloud(load_settings(), {}, os.environ).settings.http_port == port
    assert runpy.run_path(str(ROOT / "docker" / "health_check.py"))["_port"]() == str(port)


def test_check_fails_without_a_service() -> None:
    assert check(free_port()) == 1


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
def test_check_uses_tls_if_the_service_does(tmp_path: Path, status: int, expected: int) -> None:
    pair = Authority(tmp_path).issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    with responding(status, context) as port:
        assert check(port, tls_certificate_file=str(pair.certificate)) == expected


def test_check_only_connects_if_client_certificates_are_required() -> None:
    with responding(200) as port:
        assert check(port, tls_client_ca_file="ca.pem") == 0
    assert check(free_port(), tls_client_ca_file="ca.pem") == 1
