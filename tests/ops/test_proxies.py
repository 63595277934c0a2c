"""The proxy and systemd examples of docs/operations.md, run with the real programs."""

from __future__ import annotations

import csv
import json
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import httpx
import pytest

from lite_detr_client import DetectOptions, GrpcClient, HttpClient
from service.settings import Settings
from tests.ops.real_prometheus import program
from tests.support.certificates import Authority
from tests.support.images import solid_png
from tests.support.ports import free_port
from tests.support.repository import ROOT
from tests.support.running import DEFAULTS, Service

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
IMAGE = solid_png((100, 100, 103))
CLIENT = "127.0.0.2"


def example(language: str) -> str:
    """The one fenced block of a language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITE_DETR_GRPC_PORT", "0")
        settings = {"trusted_proxies": "127.0.0.1", "log_requests": "true"}
        started = Service(**(DEFAULTS | settings))
    started.wait_until_ready()
    yield started
    started.kill()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def adapted(text: str, service: Service, port: int, authority: Authority) -> str:
    """An example with the ports and certificates of the test; each must occur in it."""
    pair = authority.issue("server")
    both = pair.certificate.with_name("both.pem")
    both.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())
    replaced = {
        "127.0.0.1:8000": service.url.removeprefix("http://"),
        "127.0.0.1:8001": service.grpc_address,
        "check port 8000": f"check port {service.url.rpartition(':')[2]}",
        "/etc/ssl/lite-detr/server.pem": str(pair.certificate),
        "/etc/ssl/lite-detr/server.key": str(pair.key),
        "/etc/ssl/lite-detr/server-and-key.pem": str(both),
        "listen 443": f"listen 127.0.0.1:{port}",
        "bind :443": f"bind 127.0.0.1:{port}",
    }
    for old, new in replaced.items():
        text = text.replace(old, new)
    assert "443" not in re.sub(r"127\.0\.0\.1:\d+", "", text)
    return text


@contextmanager
def running(arguments: list[str], port: int, log: Path) -> Iterator[None]:
    """Runs a proxy; enters the block once it responds."""
    with log.open("w") as stream:
        process = subprocess.Popen(arguments, stdout=stream, stderr=stream)
    try:
        with httpx.Client(verify=False, timeout=20) as client:
            for _ in range(600):
                assert process.poll() is None, log.read_text()
                try:
                    if client.get(f"https://127.0.0.1:{port}/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                threading.Event().wait(0.1)
            else:
                raise AssertionError(log.read_text())
        yield
    finally:
        process.terminate()
        process.wait(60)


def check_requests(service: Service, port: int, authority: Authority) -> None:
    """Sends requests of both protocols through a proxy; the service must log their client."""
    before = len(service.lines)
    context = ssl.create_default_context(cafile=str(authority.certificate))
    url = f"https://127.0.0.1:{port}"
    # The address of the client: another one than that of the trusted proxy.
    transport = httpx.HTTPTransport(verify=context, local_address=CLIENT)
    with HttpClient(url, transport=transport) as client:
        over_http = client.detect(IMAGE, DetectOptions(threshold=0))
    transport = httpx.HTTPTransport(verify=context, local_address=CLIENT)
    with httpx.Client(base_url=url, transport=transport, timeout=60) as plain:
        forged = {"X-Forwarded-For": "6.6.6.6", "User-Agent": "through a proxy"}
        response = plain.post("/detect", content=b"no image", headers=forged)
        assert (response.status_code, response.json()["code"]) == (415, "unsupported_image")
        assert plain.get("/metrics").status_code == 404
    credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    with GrpcClient(f"127.0.0.1:{port}", credentials=credentials) as client_of_grpc:
        assert client_of_grpc.ready()
        over_grpc = client_of_grpc.detect(IMAGE, threshold=0.0)
        frames = list(client_of_grpc.detect_stream([IMAGE] * 5, threshold=0.0))
    assert over_http.detections == over_grpc.detections
    assert len(over_http.detections) == 4
    assert len(frames) == 5
    service.wait_for_line(r'"method":"litedetr\S+/DetectStream"')
    events = [json.loads(line) for line in service.lines[before:]]
    requests = [event for event in events if event["logger"] == "service.access"]
    assert {event["client"] for event in requests if event["transport"] == "http"} == {CLIENT}
    assert {event["client"] for event in requests if event["transport"] == "grpc"} == {"127.0.0.1"}
    (failed,) = [event for event in requests if "code" in event]
    assert (failed["code"], failed["user_agent"]) == ("unsupported_image", "through a proxy")


def with_statistics(port: int) -> str:
    """Lines for HAProxy's file: the states of the servers on a port of their own."""
    return f"\nfrontend statistics\n    bind 127.0.0.1:{port}\n    stats enable\n    stats uri /\n"


def servers(port: int) -> dict[tuple[str, str], dict[str, str]]:
    """HAProxy's statistics by backend and server."""
    text = httpx.get(f"http://127.0.0.1:{port}/;csv").text.removeprefix("# ")
    lines = csv.DictReader(text.splitlines())
    return {
        (line["pxname"], line["svname"]): line
        for line in lines
        if line["svname"] not in ("FRONTEND", "BACKEND")
    }


def states_after_checks(port: int) -> dict[tuple[str, str], str]:
    """Waits until HAProxy has checked each server; returns the state by backend and server."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for _ in range(600):
        with suppress(httpx.TransportError):  # it starts
            found = servers(port)
        if found and all(each["check_status"] not in ("INI", "* INI") for each in found.values()):
            return {name: each["status"] for name, each in found.items()}
        time.sleep(0.1)
    raise AssertionError(found)


def wait_for_state(port: int, state: str) -> None:
    """Waits until all servers are in a state."""
    for _ in range(600):
        if {each["status"] for each in servers(port).values()} == {state}:
            return
        time.sleep(0.1)
    raise AssertionError(servers(port))


def test_the_nginx_example_serves_http_and_grpc(
    service: Service, authority: Authority, tmp_path: Path
) -> None:
    tool = program("nginx", "nginx")
    port = free_port()
    (tmp_path / "site.conf").write_text(adapted(example("nginx"), service, port, authority))
    temporary = "".join(
        f"{name}_temp_path {tmp_path / name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off;\nerror_log stderr;\npid {tmp_path / 'nginx.pid'};\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}include {tmp_path / 'site.conf'};\n}}\n"
    )
    arguments = [tool, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", "stderr"]
    checked = subprocess.run([*arguments, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "[warn]" not in checked.stderr
    with running(arguments, port, tmp_path / "nginx.log"):
        check_requests(service, port, authority)


def test_the_haproxy_example_serves_http_and_grpc(
    service: Service, authority: Authority, tmp_path: Path
) -> None:
    tool = program("haproxy", "haproxy")
    port = free_port()
    configuration = tmp_path / "haproxy.cfg"
    statistics = free_port()
    text = adapted(example("haproxy"), service, port, authority) + with_statistics(statistics)
    configuration.write_text(text)
    arguments = [tool, "-db", "-f", str(configuration)]
    checked = subprocess.run([*arguments, "-c"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "[WARNING]" not in checked.stderr + checked.stdout
    with running(arguments, port, tmp_path / "haproxy.log"):
        check_requests(service, port, authority)
        states = states_after_checks(statistics)
        assert states == {("lite-detr-http", "one"): "UP", ("lite-detr-grpc", "one"): "UP"}
        check_requests(service, port, authority)


class Instance(BaseHTTPRequestHandler):
    """Stands for an instance: /readyz has the status of the class, other paths have 200."""

    status = 200

    def do_GET(self) -> None:
        status = self.status if self.path == "/readyz" else 200
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@pytest.mark.parametrize("place", ["docs/operations.md", "docker/several/haproxy.cfg"])
def test_haproxy_sends_no_requests_to_an_instance_after_one_failed_check(
    place: str, authority: Authority, tmp_path: Path
) -> None:
    tool = program("haproxy", "haproxy")
    port, statistics = free_port(), free_port()
    pair = authority.issue("server")
    both = tmp_path / "both.pem"
    both.write_bytes(pair.certificate.read_bytes() + pair.key.read_bytes())

    class Draining(Instance):
        pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Draining) as server:
        address = f"127.0.0.1:{server.server_port}"
        text = example("haproxy") if "docs" in place else (ROOT / place).read_text()
        text = re.sub(r"bind :\d+", f"bind 127.0.0.1:{port}", text)
        text = text.replace("/etc/ssl/lite-detr/server-and-key.pem", str(both))
        text = re.sub(r"(server \w+) (?:127\.0\.0\.1|\w+):\d+", rf"\1 {address}", text)
        configuration = tmp_path / "haproxy.cfg"
        configuration.write_text(text + with_statistics(statistics))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        log = (tmp_path / "log").open("w")
        process = subprocess.Popen([tool, "-db", "-f", str(configuration)], stderr=log, stdout=log)
        try:
            states = states_after_checks(statistics)
            assert set(states.values()) == {"UP"}
            Draining.status = 503
            wait_for_state(statistics, "DOWN")
            # Of the servers that are checked; the others follow them.
            failed = {each["chkfail"] for each in servers(statistics).values()}
            assert failed - {"", "0"} == {"1"}
            Draining.status = 200
            wait_for_state(statistics, "UP")
        finally:
            process.terminate()
            process.wait(60)
            log.close()
            server.shutdown()


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    tool = program("systemd-analyze", "systemd")
    unit = tmp_path / "lite-detr.service"
    text = example("ini")
    assert "/opt/lite-detr/bin/lite-detr serve" in text
    installed = Path(sys.executable).with_name("lite-detr")
    unit.write_text(text.replace("/opt/lite-detr/bin/lite-detr", str(installed)))
    done = subprocess.run([tool, "verify", str(unit)], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if "lite-detr" in line]
    assert (done.returncode, complaints) == (0, [])


def test_the_unit_stops_only_the_main_process_and_waits_for_the_drain() -> None:
    unit = dict(line.split("=", 1) for line in example("ini").splitlines() if "=" in line)
    assert unit["KillMode"] == "mixed"
    assert float(unit["TimeoutStopSec"]) > Settings().drain_timeout_seconds + 5
    names = re.findall(r"LITE_DETR_(\w+)=", example("ini"))
    assert {name.lower() for name in names} <= Settings.model_fields.keys()
