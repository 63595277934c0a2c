"""The whole service as a process of its own, with the fake device."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from lite_detr_client import (
    Caller,
    DetectOptions,
    GrpcClient,
    HttpClient,
    RetryPolicy,
    ServiceError,
)
from model.weights.info import DEFAULT_MODEL_PATH
from service.access.api_keys import Scope, key_line, new_key
from service.transport.http_server import listen
from tests.support.certificates import Authority
from tests.support.images import solid_png
from tests.support.running import DEFAULTS, ROOT, Service, process_has_ended

HANG, HANG_HEX = (9, 8, 7), "090807"


@pytest.fixture
def start() -> Iterator[object]:
    services: list[Service] = []

    def start_one(**settings: str) -> Service:
        services.append(Service(**(DEFAULTS | settings)))
        return services[-1]

    yield start_one
    for service in services:
        service.kill()


def _post(url: str, colour: tuple[int, int, int]) -> httpx.Response:
    headers = {"Content-Type": "image/png"}
    data = solid_png(colour)
    return httpx.post(f"{url}/detect?threshold=0", content=data, headers=headers, timeout=60)


def test_the_service_starts_serves_and_drains(start: type[Service]) -> None:
    service = start(metrics_port="0", fake_start_ms="1500")
    url = service.url
    assert httpx.get(f"{url}/healthz").status_code == 200
    early = httpx.get(f"{url}/readyz")
    assert (early.status_code, "Retry-After" in early.headers) == (503, True)
    assert _post(url, (1, 2, 3)).status_code == 503
    service.wait_until_ready()
    assert httpx.get(f"{url}/readyz").status_code == 200
    metrics_url = service.wait_for_line(r"Metrics: ([^\s\"]+)")[1]
    with ThreadPoolExecutor(24) as clients:
        responses = [clients.submit(_post, url, (number, 0, 0)) for number in range(24)]
        while not any(response.done() for response in responses):
            time.sleep(0.005)
        assert "lite_detr_images_total" in httpx.get(metrics_url).text
        service.process.send_signal(signal.SIGTERM)
        codes = [
            "refused" if response.exception() else response.result().status_code
            for response in responses
        ]
    assert set(codes) <= {200, "refused"}
    assert 200 in codes
    assert service.end() == 0, service.lines
    assert "all accepted requests were completed" in service.lines[-1]
    assert process_has_ended(service.engine_pid)


@pytest.mark.slow
def test_requests_are_served_during_the_drain_delay(start: type[Service]) -> None:
    service = start(drain_delay_seconds="5")
    service.wait_until_ready()
    service.process.send_signal(signal.SIGINT)
    service.wait_for_line("Draining")
    assert httpx.get(f"{service.url}/readyz").status_code == 503
    assert _post(service.url, (3, 2, 1)).status_code == 200
    assert service.end() == 0


def test_a_second_signal_exits_at_once(start: type[Service]) -> None:
    service = start(fake_hang_colour=HANG_HEX)
    service.wait_until_ready()
    with ThreadPoolExecutor(1) as client:
        response = client.submit(_post, service.url, HANG)
        while "queue_depth" not in httpx.get(f"{service.url}/metrics").text:
            time.sleep(0.01)
        while "lite_detr_batch_size_count 1.0" not in httpx.get(f"{service.url}/metrics").text:
            time.sleep(0.01)
        service.process.send_signal(signal.SIGTERM)
        service.wait_for_line("a second signal exits at once")
        service.process.send_signal(signal.SIGTERM)
        assert service.end() == 128 + signal.SIGTERM
        assert response.exception() is not None
    assert process_has_ended(service.engine_pid)


@pytest.mark.slow
def test_requests_that_never_end_do_not_block_the_shutdown(start: type[Service]) -> None:
    service = start(fake_hang_colour=HANG_HEX, drain_timeout_seconds="1")
    service.wait_until_ready()
    with ThreadPoolExecutor(1) as client:
        response = client.submit(_post, service.url, HANG)
        while "lite_detr_batch_size_count 1.0" not in httpx.get(f"{service.url}/metrics").text:
            time.sleep(0.01)
        service.process.send_signal(signal.SIGTERM)
        assert service.end() == 1
        assert response.result().status_code == 503
    assert process_has_ended(service.engine_pid)


@pytest.mark.slow
def test_an_engine_exits_with_a_killed_edge(start: type[Service]) -> None:
    service = start()
    service.wait_until_ready()
    service.process.kill()
    service.end()
    assert process_has_ended(service.engine_pid)


@pytest.mark.parametrize(
    "flag",
    [
        "http",
        pytest.param("grpc", marks=pytest.mark.slow),
        pytest.param("metrics", marks=pytest.mark.slow),
    ],
)
def test_the_error_for_a_port_in_use_names_the_setting(start: type[Service], flag: str) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        service = start(**{f"{flag}_port": str(port)})
        assert service.end() == 1
    [line] = [line for line in service.lines if "Cannot listen" in line]
    expected = (
        f"Cannot listen on 127.0.0.1:{port}: Address already in use. Choose another with "
        f"--{flag}-port (LITE_DETR_{flag.upper()}_PORT)"
    )
    assert json.loads(line)["event"] == expected
    assert not any("listens on" in line or "Traceback" in line for line in service.lines)


def test_a_model_that_does_not_exist_ends_the_start(start: type[Service]) -> None:
    service = start(backend="torch", model="no-such-model")
    assert service.end() == 1
    output = "".join(service.lines)
    assert "Cannot use the model: no-such-model" in output
    assert "Traceback" not in output


def test_grpc_returns_the_detections_of_http_and_drains_with_it(start: type[Service]) -> None:
    service = start(grpc_port="0")
    address = service.wait_for_line(r"gRPC: (\S+),")[1]
    service.wait_until_ready()
    over_http = _post(service.url, (10, 20, 30)).json()["detections"]
    with GrpcClient(address) as client:
        result = client.detect(solid_png((10, 20, 30)), DetectOptions(threshold=0))
    assert over_http
    assert [found.label for found in result.detections] == [found["label"] for found in over_http]
    assert result.detections[0].box.xmin == pytest.approx(over_http[0]["box"]["xmin"])
    service.process.send_signal(signal.SIGTERM)
    assert service.end() == 0, service.lines


def test_the_open_inference_protocol_is_served_on_both_ports_and_drains(
    start: type[Service],
) -> None:
    service = start(grpc_port="0")
    address = service.wait_for_line(r"gRPC: (\S+), .* and inference.GRPCInferenceService")[1]
    service.wait_until_ready()
    assert httpx.get(f"{service.url}/v2/models/fake/ready").status_code == 200
    with grpc.insecure_channel(address) as channel:
        ready: Any = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
        assert ready(b"") == b"\x08\x01"
    url = f"{service.url}/v2/models/fake/infer"
    with ThreadPoolExecutor(24) as clients:
        raw = {"Inference-Header-Content-Length": "0"}
        responses = [
            clients.submit(
                httpx.post, url, content=solid_png((number, 0, 0)), headers=raw, timeout=60
            )
            for number in range(24)
        ]
        while not any(response.done() for response in responses):
            time.sleep(0.005)
        service.process.send_signal(signal.SIGTERM)
        codes = [
            "refused" if response.exception() else response.result().status_code
            for response in responses
        ]
    assert set(codes) <= {200, "refused"}
    assert 200 in codes
    assert service.end() == 0, service.lines


def test_a_model_is_unloaded_and_loaded_over_the_open_inference_protocol(
    start: type[Service],
) -> None:
    service = start(model_control="explicit")
    service.wait_until_ready()

    def infer() -> httpx.Response:
        headers = {"Inference-Header-Content-Length": "0"}
        url = f"{service.url}/v2/models/fake/infer"
        return httpx.post(url, content=solid_png((1, 2, 3)), headers=headers, timeout=60)

    repository = f"{service.url}/v2/repository"
    assert infer().status_code == 200
    assert httpx.post(f"{repository}/models/fake/unload", timeout=60).status_code == 200
    assert (infer().status_code, infer().json()) == (503, {"error": "no model is loaded"})
    assert httpx.post(f"{repository}/index").json()[0]["state"] == "UNAVAILABLE"
    assert httpx.post(f"{repository}/models/fake/load", timeout=60).status_code == 200
    assert infer().status_code == 200
    service.process.send_signal(signal.SIGTERM)
    assert service.end() == 0, service.lines


@pytest.mark.slow
def test_sighup_reloads_keys_and_certificates(start: type[Service], tmp_path: Path) -> None:
    authority, keys = Authority(tmp_path), tmp_path / "keys"
    pair, first, second = authority.issue("server"), new_key(), new_key()
    keys.write_text(key_line("first", [Scope.DETECT], first))
    service = start(
        grpc_port="0",
        metrics_port="0",
        api_keys_file=str(keys),
        tls_certificate_file=str(pair.certificate),
        tls_key_file=str(pair.key),
    )
    assert service.url.startswith("https://")
    service.wait_until_ready()
    trusting = ssl.create_default_context(cafile=str(authority.certificate))
    credentials = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    target = service.wait_for_line(r"gRPC: (\S+),")[1]

    def outcomes(key: str) -> list[str]:
        caller, once = Caller(api_key=key), RetryPolicy(attempts=1)
        clients = (
            HttpClient(service.url, caller=caller, tls=trusting, retries=once),
            GrpcClient(target, caller=caller, credentials=credentials, retries=once),
        )
        found = []
        for client in clients:
            with client:
                try:
                    client.detect(solid_png((10, 20, 30)))
                    found.append("ok")
                except ServiceError as error:
                    found.append(error.code)
        return found

    assert outcomes(first) == ["ok", "ok"]
    assert outcomes(second) == ["unauthenticated"] * 2
    metrics_url = service.wait_for_line(r"Metrics: ([^\s\"]+)")[1]
    assert httpx.get(metrics_url, verify=trusting).status_code == 401
    keys.write_text(key_line("second", [Scope.DETECT], second))
    authority.issue("server")
    service.process.send_signal(signal.SIGHUP)
    service.wait_for_line("certificates reloaded")
    service.wait_for_line("model loaded")
    assert outcomes(first) == ["unauthenticated"] * 2
    assert outcomes(second) == ["ok", "ok"]
    service.process.send_signal(signal.SIGTERM)
    assert service.end() == 0, service.lines
    output = "".join(service.lines)
    assert first not in output
    assert second not in output


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"api_keys_file": "/nowhere/keys"}, "/nowhere/keys: cannot be read"),
        pytest.param(
            {"tls_certificate_file": "/nowhere/c.pem", "tls_key_file": "/nowhere/k.pem"},
            "/nowhere/c.pem and /nowhere/k.pem",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["keys", "tls"],
)
def test_invalid_keys_or_certificates_end_the_start(
    start: type[Service], settings: dict[str, str], words: str
) -> None:
    service = start(**settings)
    assert service.end() == 1
    output = "".join(service.lines)
    assert f"Cannot secure the service: {words}" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_sighup_during_the_first_load_waits_for_it(start: type[Service]) -> None:
    service = start(fake_start_ms="1500")
    assert service.url
    service.process.send_signal(signal.SIGHUP)
    service.wait_until_ready()
    service.wait_for_line("model loaded")
    assert _post(service.url, (1, 2, 3)).status_code == 200
    service.process.send_signal(signal.SIGTERM)
    assert service.end() == 0, service.lines


@pytest.mark.slow
@pytest.mark.skipif(not DEFAULT_MODEL_PATH.exists(), reason="no default model in this checkout")
def test_a_client_of_grpc_cannot_fill_the_log() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "GRPC_VERBOSITY"}
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", "0", "--grpc-port", "0"],
        cwd=ROOT,
        env=environment | {"LITE_DETR_LOG_FORMAT": "json"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        lines = iter(process.stderr)
        port = next(filter(None, (re.search(r"gRPC: \S+:(\d+)", line) for line in lines)))[1]
        for method in ("/grpc.health.v1.Health/Check", "/no.such.Service/Method"):
            with grpc.insecure_channel(
                f"127.0.0.1:{port}", compression=grpc.Compression.Gzip
            ) as channel:
                call: Any = channel.unary_unary(method)
                with pytest.raises(grpc.RpcError) as refused:
                    call(bytes(100_000), timeout=60)
                assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        process.send_signal(signal.SIGTERM)
        rest = "".join(lines)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert "Compression algorithm" not in rest
