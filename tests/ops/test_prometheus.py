"""The rules query existing metrics, and pass their unit tests."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml

from service.errors import all_error_types
from service.observability.metrics import Metrics
from tests.ops.exported import exported_series
from tests.ops.queries import RULES, metrics_of, rules_of
from tests.support.repository import ROOT

RULE_FILES = ("recording.rules.yml", "alerts.rules.yml")
OF_PROMETHEUS = {"up"}


def promtool(*arguments: str) -> None:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian, Ubuntu: apt install prometheus)")
    done = subprocess.run(
        [tool, *arguments], cwd=RULES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def recorded() -> set[str]:
    return {rule["record"] for rule in rules_of("recording.rules.yml")}


@pytest.mark.parametrize("file", RULE_FILES)
def test_rules_query_existing_metrics(file: str) -> None:
    known = exported_series() | recorded() | OF_PROMETHEUS
    for rule in rules_of(file):
        unknown = metrics_of(rule["expr"]) - known
        assert not unknown, f"{rule.get('alert') or rule['record']} queries {unknown}"


def test_every_recorded_series_is_used_by_an_alert_a_panel_or_an_autoscaler() -> None:
    dashboard = (ROOT / "docker/grafana/dashboards/lite-detr.json").read_text(encoding="utf-8")
    alerts = (RULES / "alerts.rules.yml").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    autoscaling = page.partition("### Autoscaling")[2].partition("###")[0]
    assert not [name for name in recorded() if name not in dashboard + alerts + autoscaling]


def test_failed_images_are_existing_outcomes() -> None:
    outcomes = {error.code for error in all_error_types()} | {"internal"}
    [rule] = [
        rule
        for rule in rules_of("recording.rules.yml")
        if rule["record"] == "job:lite_detr_images_failed:ratio_rate5m"
    ]
    failed = rule["expr"].partition('outcome=~"')[2].partition('"')[0].split("|")
    assert len(failed) == 5
    assert set(failed) <= outcomes


def test_latency_objective_is_an_existing_bucket() -> None:
    text = Metrics().render()[0].decode()
    assert 'lite_detr_stage_seconds_bucket{le="1.0",stage="total"}' in text


def test_alerts_have_severity_runbook_and_description() -> None:
    for rule in rules_of("alerts.rules.yml"):
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["runbook"].endswith("#" + rule["alert"].lower())
        assert rule["annotations"]["runbook"].startswith("{{ with $externalLabels.docs_url }}")
        assert {"summary", "description"} <= rule["annotations"].keys()


def test_the_address_of_the_runbook_is_set_in_one_place_and_dropped_from_alerts() -> None:
    text = (RULES / "prometheus.yml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    address = document["global"]["external_labels"]["docs_url"]
    assert re.fullmatch(r"https://\S+[^/]", address)
    assert text.count(address) == 1
    assert (RULES / "alerts.rules.yml").read_text(encoding="utf-8").count(address) == 0
    dropped = [r["regex"] for r in document["alerting"]["alert_relabel_configs"]]
    assert dropped == ["docs_url"]


def test_runbook_has_exactly_one_entry_for_each_alert() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    entries = re.findall(r"^### (LiteDetr\w+)\n\n\*(\w+)\.\*", page, re.MULTILINE)
    alerts = {rule["alert"]: rule["labels"]["severity"] for rule in rules_of("alerts.rules.yml")}
    assert dict(entries) == alerts
    assert len(entries) == len(alerts)


def test_alertmanager_accepts_its_configuration() -> None:
    tool = shutil.which("amtool")
    if tool is None:
        pytest.skip("amtool is not installed (Debian, Ubuntu: apt install prometheus-alertmanager)")
    file = ROOT / "docker" / "alertmanager" / "alertmanager.yml"
    done = subprocess.run(
        [tool, "check-config", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alertmanager_inhibits_existing_alerts() -> None:
    text = (ROOT / "docker" / "alertmanager" / "alertmanager.yml").read_text(encoding="utf-8")
    alerts = {rule["alert"] for rule in rules_of("alerts.rules.yml")}
    assert set(re.findall(r"LiteDetr\w+", text)) <= alerts


def test_prometheus_accepts_configuration_and_rules() -> None:
    promtool("check", "config", "prometheus.yml")


def test_rules_pass_their_unit_tests() -> None:
    promtool("test", "rules", "rules.test.yml")


def test_every_alert_has_a_unit_test() -> None:
    text = (RULES / "rules.test.yml").read_text(encoding="utf-8")
    assert not [r["alert"] for r in rules_of("alerts.rules.yml") if r["alert"] not in text]
