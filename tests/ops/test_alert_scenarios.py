"""Faults are injected into running services; Prometheus must fire the expected alerts.

The windows of the rules are divided by 60; everything else is as deployed.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from tests.ops.queries import panel_queries, rules_of
from tests.ops.real_prometheus import Pager, program, real_alertmanager, real_prometheus
from tests.ops.scenario_services import FAULT, FAULT_HEX, GOOD, Scenario, running_services
from tests.support.images import solid_png

DIVISOR = 60
TIMEOUT_SECONDS = 300
BAD = solid_png(FAULT)
SCENARIOS = (
    Scenario("healthy", frozenset()),
    Scenario(
        "failing",
        frozenset({"LiteDetrErrorBurnFast", "LiteDetrErrorBurnSlow"}),
        {"fake_error_colour": FAULT_HEX},
        (GOOD, BAD),
    ),
    Scenario(
        "slow",
        frozenset({"LiteDetrLatencyBurnFast", "LiteDetrLatencyBurnSlow"}),
        {"fake_base_ms": "1200"},
        clients=8,
    ),
    Scenario(
        "storming",
        frozenset({"LiteDetrRestartStorm", "LiteDetrNotLive"}),
        {"fake_crash_colour": FAULT_HEX, "storm_restarts": "3", "storm_window_seconds": "600"},
        (BAD,),
        clients=2,
    ),
    Scenario(
        "full",
        frozenset({"LiteDetrSaturated", "LiteDetrQueueing", "LiteDetrRefusing"}),
        {"slots": "4", "priority_slots": "0", "fake_base_ms": "900", "max_batch_size": "1"},
        clients=16,
    ),
    Scenario(
        "padded", frozenset({"LiteDetrPaddingWaste"}), images=(solid_png((5, 5, 5), 2000, 40),)
    ),
    Scenario(
        "loading",
        frozenset({"LiteDetrNotReady", "LiteDetrCanaryStale"}),
        {"fake_start_ms": "3600000", "start_timeout_seconds": "7200"},
        clients=0,
        becomes_ready=False,
    ),
    Scenario("lite-detr", frozenset({"LiteDetrDown"}), is_killed=True),
)
# Needs a bug of the service; covered by `promtool test rules`.
NOT_INJECTED = {"LiteDetrInternalError"}
CAUSED_BY_A_SLOW_MACHINE = {  # latencies, and scrapes of more than a second
    "LiteDetrDown",
    "LiteDetrLatencyBurnFast",
    "LiteDetrLatencyBurnSlow",
    "LiteDetrQueueing",
}
# Alertmanager inhibits these while a more specific alert fires.
INHIBITED = {"LiteDetrErrorBurnSlow", "LiteDetrLatencyBurnSlow", "LiteDetrCanaryStale"}


@dataclass
class Observation:
    """The alerts at the time when every expected alert had fired, or at the timeout."""

    fired: dict[str, set[str]]
    paged: set[str]
    ticketed: set[str]
    empty_panels: list[str]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observation]:
    program("prometheus", "prometheus")
    program("prometheus-alertmanager", "prometheus-alertmanager")
    folder = tmp_path_factory.mktemp("alerts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LITE_DETR_GRPC_PORT", "-1")
        pager = Pager()
        try:
            with (
                running_services(SCENARIOS, folder) as services,
                real_alertmanager(pager, folder, DIVISOR) as alertmanager,
                real_prometheus(
                    {each.scenario.job: each.url.removeprefix("http://") for each in services},
                    alertmanager,
                    folder,
                    DIVISOR,
                ) as prometheus,
            ):
                for service in services:
                    if service.scenario.is_killed:
                        service.kill()
                yield _observe(prometheus, pager)
        finally:
            pager.close()


def _observe(prometheus: httpx.Client, pager: Pager) -> Observation:
    """Polls until all expected alerts have fired and have reached the pager."""
    fired: dict[str, set[str]] = defaultdict(set)
    expected = {(each.job, alert) for each in SCENARIOS for alert in each.alerts}
    names = {alert for _, alert in expected} - INHIBITED
    for _ in range(TIMEOUT_SECONDS * 2):
        for alert in prometheus.get("/api/v1/alerts").json()["data"]["alerts"]:
            if alert["state"] == "firing":
                fired[alert["labels"]["job"]].add(alert["labels"]["alertname"])
        seen = {(job, alert) for job, alerts in fired.items() for alert in alerts}
        if expected <= seen and names <= pager.names("/page") | pager.names("/ticket"):
            break
        threading.Event().wait(0.5)
    return Observation(
        fired, pager.names("/page"), pager.names("/ticket"), _empty_panels(prometheus)
    )


def _empty_panels(prometheus: httpx.Client) -> list[str]:
    empty = []
    for title, query in panel_queries():
        if title.startswith("GPU"):  # this machine may have none
            continue
        response = prometheus.get("/api/v1/query", params={"query": query.replace("[5m]", "[5s]")})
        if not response.json()["data"]["result"]:
            empty.append(f"{title}: {query}")
    return empty


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.job)
def test_fault_fires_its_alerts(observed: Observation, scenario: Scenario) -> None:
    assert scenario.alerts <= observed.fired[scenario.job]


@pytest.mark.slow
def test_healthy_service_fires_no_alert(observed: Observation) -> None:
    assert observed.fired["healthy"] <= CAUSED_BY_A_SLOW_MACHINE


@pytest.mark.slow
def test_alerts_reach_the_route_of_their_severity(observed: Observation) -> None:
    severity = {rule["alert"]: rule["labels"]["severity"] for rule in rules_of("alerts.rules.yml")}
    assert {severity[alert] for alert in observed.paged} == {"page"}
    assert {severity[alert] for alert in observed.ticketed} == {"ticket"}
    expected = {alert for each in SCENARIOS for alert in each.alerts}
    assert expected - INHIBITED <= observed.paged | observed.ticketed


@pytest.mark.slow
def test_every_panel_shows_data(observed: Observation) -> None:
    assert observed.empty_panels == []


def test_every_alert_has_a_scenario_or_is_excluded() -> None:
    injected = {alert for each in SCENARIOS for alert in each.alerts}
    assert injected | NOT_INJECTED == {rule["alert"] for rule in rules_of("alerts.rules.yml")}
