"""Prometheus scrapes a service under load and returns its exemplars."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ops.real_prometheus import program
from tests.support.images import solid_png
from tests.support.ports import free_port
from tests.support.running import DEFAULTS, Service

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
UNSAMPLED_ID = "1bf7651916cd43dd8448eb211c80319c"


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service(**(DEFAULTS | {"metrics_port": "0", "slots": "4", "fake_base_ms": "5"}))
    service.wait_until_ready()
    yield service
    service.kill()


def _metrics_url(service: Service) -> str:
    return service.wait_for_line(r"Metrics: (\S+)/metrics")[1]


def _load(service: Service) -> None:
    """Sends requests with many outcomes, in sampled and unsampled traces."""
    url = f"{service.url}/detect"
    sampled = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
    unsampled = {"traceparent": f"00-{UNSAMPLED_ID}-b7ad6b7169203331-00"}
    with httpx.Client(timeout=60) as client:
        for number in range(20):
            headers = sampled if number % 2 else unsampled
            client.post(url, content=solid_png((number, 2, 3)), headers=headers)
        client.post(url, content=b"no image")
        client.post(f"{url}?threshold=9", content=solid_png((1, 2, 3)))
        client.post(f"{url}?labels=nothing", content=solid_png((1, 2, 3)))
        client.post(url, content=solid_png((1, 2, 3)), headers={"X-Request-Timeout-Ms": "0.001"})
        client.get(f"{service.url}/nothing/{'x' * 100}")


def _eventually(read: Callable[[], Any]) -> Any:
    """Polls `read` until it returns something, for at most a minute."""
    found = read()
    for _ in range(600):
        if found:
            return found
        time.sleep(0.1)
        found = read()
    raise AssertionError("timed out")


def test_promtool_accepts_the_metrics_of_a_service_under_load(service: Service) -> None:
    _load(service)
    text = httpx.get(f"{_metrics_url(service)}/metrics", timeout=60).content
    assert b'lite_detr_requests_total{outcome="unsupported_image",protocol="http"} 1.0' in text
    tool = program("promtool", "prometheus")
    done = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""


def test_clients_cannot_create_series(service: Service) -> None:
    def names() -> set[str]:
        text = httpx.get(f"{_metrics_url(service)}/metrics", timeout=60).text
        return {line.rpartition(" ")[0] for line in text.splitlines() if line[0] != "#"}

    _load(service)
    before = names()
    with httpx.Client(timeout=60) as client:
        for number in range(30):
            headers = {"X-Request-Id": f"r{number}", "User-Agent": f"agent{number}"}
            client.post(
                f"{service.url}/detect?labels=l{number}",
                content=solid_png((1, 2, 3)),
                headers=headers,
            )
            client.get(f"{service.url}/p{number}", headers=headers)
    assert names() - before == set()


def test_the_metrics_port_serves_nothing_else(service: Service) -> None:
    url = _metrics_url(service)
    assert httpx.get(f"{url}/metrics", timeout=60).status_code == 200
    assert httpx.get(f"{url}/detect", timeout=60).status_code == 404
    assert httpx.get(f"{service.url}/metrics", timeout=60).status_code == 404


@pytest.fixture
def prometheus(service: Service, tmp_path: Path) -> Iterator[str]:
    """The URL of a Prometheus that scrapes the service every second."""
    executable = program("prometheus", "prometheus")
    target = _metrics_url(service).removeprefix("http://")
    (tmp_path / "prometheus.yml").write_text(
        f"""
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: lite-detr
    static_configs: [{{targets: ["{target}"]}}]
"""
    )
    port = free_port()
    process = subprocess.Popen(
        [
            executable,
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _query(url: str, path: str, **parameters: str) -> Any:
    """The data of a response of Prometheus; None before it is up."""
    try:
        response = httpx.get(f"{url}/api/v1/{path}", params=parameters, timeout=60)
    except httpx.TransportError:
        return None
    return response.json()["data"] if response.status_code == 200 else None


@pytest.mark.slow
def test_prometheus_returns_the_exemplars_of_sampled_traces(
    service: Service, prometheus: str
) -> None:
    _load(service)
    for name in ("lite_detr_request_seconds_bucket", "lite_detr_stage_seconds_bucket"):

        def exemplars(query: str = name) -> list[dict[str, Any]]:
            series = _query(
                prometheus,
                "query_exemplars",
                query=query,
                start=str(time.time() - 300),
                end=str(time.time() + 60),
            )
            return [exemplar for one in series or () for exemplar in one["exemplars"]]

        traces = {exemplar["labels"]["trace_id"] for exemplar in _eventually(exemplars)}
        assert traces == {TRACE_ID}
    query = 'sum(lite_detr_images_total{outcome="ok"})'
    found = _eventually(lambda: (_query(prometheus, "query", query=query) or {}).get("result"))
    assert float(found[0]["value"][1]) == 20
    target = _eventually(lambda: _query(prometheus, "targets"))["activeTargets"][0]
    assert (target["health"], target["lastError"]) == ("up", "")
