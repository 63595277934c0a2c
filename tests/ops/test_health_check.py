"""The image's health check against live, failing and absent services, with TLS and proxies."""

from __future__ import annotations

import importlib.util
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from service.cli.serve import SERVE_OPTIONS
from service.clouds.deployment import settings_for_cloud
from service.settings import load_settings
from tests.support.certificates import Authority
from tests.support.ports import free_port
from tests.support.repository import ROOT

SCRIPT = ROOT / "docker" / "health_check.py"
PROGRAM = ["/opt/lite-detr/bin/python3", "/opt/lite-detr/bin/lite-detr"]


@pytest.fixture
def script() -> Any:
    """The health check as a module."""
    spec = importlib.util.spec_from_file_location("health_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def responding(
    status: int, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> Iterator[int]:
    """Runs a server whose /healthz has the given status; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Does not log requests."""

    server = ThreadingHTTPServer((host, 0), Handler)
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


def check(port: int, others: dict[str, str] | None = None, **settings: str) -> int:
    environment = {key: val for key, val in os.environ.items() if not key.startswith("LITE_DETR_")}
    environment |= others or {}
    environment |= {f"LITE_DETR_{name.upper()}": value for name, value in settings.items()}
    argv = [sys.executable, str(SCRIPT)]
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
    monkeypatch: pytest.MonkeyPatch, script: Any, variables: dict[str, str], port: int
) -> None:
    for name in ("PORT", "LITE_DETR_HTTP_PORT", "LITE_DETR_CLOUD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert settings_for_cloud(load_settings(), {}, os.environ).settings.http_port == port
    assert script._port(os.environ) == str(port)


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


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_check_does_not_go_through_a_proxy(variable: str) -> None:
    proxy = {variable: f"http://127.0.0.1:{free_port()}", "no_proxy": "", "NO_PROXY": ""}
    with responding(200) as port:
        assert check(port, proxy) == 0
    with responding(503) as port:
        assert check(port, proxy) == 1


def test_check_with_tls_does_not_go_through_a_proxy(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    proxy = {"https_proxy": f"http://127.0.0.1:{free_port()}", "no_proxy": "", "NO_PROXY": ""}
    with responding(200, context) as port:
        assert check(port, proxy, tls_certificate_file=str(pair.certificate)) == 0


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([*PROGRAM, "serve", "--port", "9000"], {"LITE_DETR_HTTP_PORT": "9000"}),
        ([*PROGRAM, "serve", "--http-port=9000", ""], {"LITE_DETR_HTTP_PORT": "9000"}),
        ([*PROGRAM, "serve", "-p", "9000"], {"LITE_DETR_HTTP_PORT": "9000"}),
        ([*PROGRAM, "serve", "-p9000"], {"LITE_DETR_HTTP_PORT": "9000"}),
        ([*PROGRAM, "serve", "--port", "1", "-p", "2"], {"LITE_DETR_HTTP_PORT": "2"}),
        ([*PROGRAM, "ray", "--port", "9000"], {"LITE_DETR_HTTP_PORT": "9000"}),
        (
            ["python3", "-m", "service", "serve", "--host", "10.0.0.1"],
            {"LITE_DETR_HOST": "10.0.0.1"},
        ),
        (
            ["/sbin/docker-init", "--", "lite-detr", "serve", "--cloud=vertex"],
            {"LITE_DETR_CLOUD": "vertex"},
        ),
        (
            [*PROGRAM, "serve", "--tls-certificate-file=a", "--tls-client-ca-file", "b"],
            {"LITE_DETR_TLS_CERTIFICATE_FILE": "a", "LITE_DETR_TLS_CLIENT_CA_FILE": "b"},
        ),
        ([*PROGRAM, "serve", "--port"], {"LITE_DETR_HTTP_PORT": ""}),
        ([*PROGRAM, "serve", "--grpc-port", "9000"], {}),
        ([*PROGRAM, "serve"], {}),
        (["/pause"], {}),
        (["server", "serve", "--port", "9000"], {}),
        (["serve", "--port", "9000"], {}),
        ([], {}),
    ],
)
def test_the_flags_of_the_first_process_are_found(
    script: Any, arguments: list[str], found: dict[str, str]
) -> None:
    assert script._flags(arguments) == found


def test_the_flags_are_those_of_serve(script: Any) -> None:
    flags = {
        flag: spec.env_var for spec in SERVE_OPTIONS for flag in (spec.flag, *spec.short_flags)
    }
    assert script._FLAGS.items() <= flags.items()
    assert {flag for flag, variable in flags.items() if variable == "LITE_DETR_HTTP_PORT"} <= set(
        script._FLAGS
    )


def test_check_uses_flags_before_variables(
    monkeypatch: pytest.MonkeyPatch, script: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("LITE_DETR_HTTP_PORT", str(free_port()))
    pair = Authority(tmp_path).issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    with responding(200, context) as port:
        flags = ["--port", str(port), "--tls-certificate-file", str(pair.certificate)]
        monkeypatch.setattr(script, "_first_process", lambda: [*PROGRAM, "serve", *flags])
        assert script.main() == 0
        monkeypatch.setattr(script, "_first_process", lambda: [*PROGRAM, "serve", *flags[:2]])
        assert script.main() == 1
        monkeypatch.setattr(script, "_first_process", list)
        assert script.main() == 1


@pytest.mark.parametrize(
    ("host", "address"),
    [
        (None, "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "::1"),
        ("10.0.0.1", "10.0.0.1"),
        ("localhost", "localhost"),
    ],
)
def test_check_uses_an_address_that_the_service_listens_on(
    script: Any, host: str | None, address: str
) -> None:
    assert script._host({} if host is None else {"LITE_DETR_HOST": host}) == address


def test_check_finds_a_service_on_one_address() -> None:
    with responding(200, host="127.0.0.2") as port:
        assert check(port, host="127.0.0.2") == 0
        assert check(port) == 1
        assert check(port, host="127.0.0.2", tls_client_ca_file="ca.pem") == 0


@pytest.mark.parametrize("host", ["no host", "::::", "\u00e9\u2028"])
def test_an_address_that_is_none_is_an_error(host: str) -> None:
    assert check(free_port(), host=host) == 1
