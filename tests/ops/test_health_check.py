"""The image's health check against services that are well, ill, gone, or speak TLS."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.ops.real_prometheus import free_port
from tests.support.certificates import Authority
from tests.support.repository import ROOT


@contextmanager
def answering(status: int, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server whose /healthz has that status; gives its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

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
    words = [sys.executable, str(ROOT / "docker" / "health_check.py")]
    environment["LITE_DETR_HTTP_PORT"] = str(port)
    return subprocess.run(words, env=environment, capture_output=True, check=False).returncode


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
def test_check_says_what_healthz_says(status: int, expected: int) -> None:
    with answering(status) as port:
        assert check(port) == expected


def test_service_that_is_gone_is_not_well() -> None:
    assert check(free_port()) == 1


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
def test_service_that_speaks_tls_is_asked_over_tls(
    tmp_path: Path, status: int, expected: int
) -> None:
    pair = Authority(tmp_path).issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    with answering(status, context) as port:
        assert check(port, tls_certificate_file=str(pair.certificate)) == expected


def test_service_that_wants_certificates_is_well_while_it_takes_connections() -> None:
    with answering(200) as port:
        assert check(port, tls_client_ca_file="ca.pem") == 0
    assert check(free_port(), tls_client_ca_file="ca.pem") == 1
