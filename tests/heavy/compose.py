"""Runs the compose file: make test-containers [COMPOSE='docker compose'] [STAND_INS=1].

STAND_INS=1 replaces the pinned Prometheus image by Debian's Prometheus and omits Grafana, for
machines without access to a container registry.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import httpx
import pytest

from lite_detr_client import GrpcClient
from tests.heavy.container_engine import ContainerEngine, command_from, run, wait_until
from tests.heavy.containers import EXPECTED, SAMPLE
from tests.heavy.findings import RESULTS, Findings
from tests.ops.queries import rules_of
from tests.support.ports import free_port
from tests.support.repository import ROOT

PROJECT = "lite-detr-check"
STAND_INS = os.environ.get("STAND_INS") == "1"
FILES = ["-f", "docker-compose.yml", *(["-f", "tests/heavy/stand-ins.yml"] if STAND_INS else [])]
SERVICES = ["detector", "prometheus", *([] if STAND_INS else ["grafana"])]

pytestmark = pytest.mark.timeout(3600)


class Compose:
    """The compose project, on free ports."""

    def __init__(self) -> None:
        self._argv = [*command_from("COMPOSE", "docker compose"), "-p", PROJECT, *FILES]
        names = ("LITE_DETR_PUBLISH_PORT", "LITE_DETR_PUBLISH_GRPC_PORT")
        self._ports = {
            name: free_port()
            for name in (*names, "PROMETHEUS_PUBLISH_PORT", "GRAFANA_PUBLISH_PORT")
        }
        self.detector, self.grpc, self.prometheus, self.grafana = (
            f"127.0.0.1:{port}" for port in self._ports.values()
        )

    def do(self, *arguments: str, check: bool = True) -> str:
        variables = {name: str(port) for name, port in self._ports.items()}
        done = run([*self._argv, *arguments], check=check, **variables)
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def compose() -> Iterator[Compose]:
    project = Compose()
    engine = ContainerEngine()
    built = engine.build("cpu", "lite-detr:cpu")
    assert built.returncode == 0, built.stdout + built.stderr
    if STAND_INS:
        stand_in = ["-f", "tests/heavy/prometheus.Dockerfile", "-t", "lite-detr-test/prometheus"]
        engine.do("build", *stand_in, "tests/heavy")
    project.do("down", "--volumes", check=False)
    project.do("up", "--detach", "--no-build", *SERVICES)
    try:
        wait_until(lambda: _is_ok(f"http://{project.detector}/readyz"), "the service is ready")
        wait_until(lambda: _is_ok(f"http://{project.prometheus}/-/ready"), "Prometheus is ready")
        yield project
    finally:
        project.do("down", "--volumes", check=False)


def _is_ok(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).status_code == httpx.codes.OK
    return False


def _query(compose: Compose, query: str) -> list[dict[str, object]]:
    response = httpx.get(f"http://{compose.prometheus}/api/v1/query", params={"query": query})
    found: list[dict[str, object]] = response.json()["data"]["result"]
    return found


@pytest.mark.parametrize("profile", ["", "gpu", "alerts"])
def test_compose_accepts_the_file(profile: str) -> None:
    profiles = ["--profile", profile] if profile else []
    argv = command_from("COMPOSE", "docker compose")
    run([*argv, "-f", "docker-compose.yml", *profiles, "config", "--quiet"])


def test_compose_refuses_a_mistyped_key(tmp_path: object) -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    wrong = f"{tmp_path}/wrong.yml"
    with open(wrong, "w", encoding="utf-8") as stream:
        stream.write(text.replace("    read_only: true", "    read_onyl: true", 1))
    argv = command_from("COMPOSE", "docker compose")
    assert run([*argv, "-f", wrong, "config", "--quiet"], check=False).returncode != 0


def test_service_responds_on_both_published_ports(compose: Compose) -> None:
    response = httpx.post(
        f"http://{compose.detector}/detect", content=SAMPLE.read_bytes(), timeout=60
    )
    assert {found["label"] for found in response.json()["detections"]} == EXPECTED
    with GrpcClient(compose.grpc) as client:
        assert {found.label for found in client.detect(SAMPLE).detections} == EXPECTED


def test_prometheus_finds_and_scrapes_the_service(compose: Compose) -> None:
    wait_until(lambda: bool(_query(compose, 'up{job="lite-detr"} == 1')), "a scrape of the service")
    wait_until(
        lambda: bool(_query(compose, "instance:lite_detr_slots_in_use:ratio")), "a recording"
    )


def test_prometheus_evaluates_every_rule(compose: Compose) -> None:
    def all_healthy() -> bool:
        groups = httpx.get(f"http://{compose.prometheus}/api/v1/rules").json()["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        names = {rule["name"] for rule in rules if rule["health"] == "ok"}
        wanted = {rule["alert"] for rule in rules_of("alerts.rules.yml")}
        return wanted | {rule["record"] for rule in rules_of("recording.rules.yml")} == names

    wait_until(all_healthy, "every rule evaluated without an error")


@pytest.mark.skipif(STAND_INS, reason="Grafana's image comes from a container registry")
def test_grafana_shows_the_dashboard_without_a_login(compose: Compose) -> None:
    url = f"http://{compose.grafana}/api/dashboards/uid/lite-detr"
    wait_until(lambda: _is_ok(url), "the provisioned dashboard")


def test_stopping_the_service_drains_it(compose: Compose) -> None:
    compose.do("stop", "detector")
    assert "all accepted requests were completed" in compose.do("logs", "detector")
    assert "(0)" in compose.do("ps", "--all", "detector")
    findings = Findings("Compose", "make test-containers")
    findings.note(
        "compose", run([*command_from("COMPOSE", "docker compose"), "version"]).stdout.strip()
    )
    findings.note("services", ", ".join(SERVICES))
    findings.note("stand-in", "Debian's Prometheus" if STAND_INS else "none")
    findings.note(
        "tested", "HTTP, gRPC, scrape by DNS name, every rule healthy, drained with status 0"
    )
    findings.write(RESULTS / "compose")
