"""The dashboard queries existing metrics of the provisioned data source."""

from __future__ import annotations

import pytest

from tests.ops.exported import exported_series
from tests.ops.queries import dashboard, load_yaml, metrics_of, panel_queries, rules_of

PROVISIONING = "docker/grafana/provisioning"


@pytest.mark.parametrize(("title", "query"), panel_queries())
def test_panel_queries_existing_metrics(title: str, query: str) -> None:
    recorded = {rule["record"] for rule in rules_of("recording.rules.yml")}
    assert metrics_of(query) <= exported_series() | recorded, title


def test_panels_have_queries_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        columns = range(place["x"], place["x"] + place["w"])
        cells = {(x, y) for x in columns for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, f"{panel['title']} overlaps another panel"
        assert max(columns) < 24
        taken |= cells
        assert panel["type"] == "row" or panel["targets"]


def test_dashboard_uses_the_provisioned_data_source() -> None:
    [source] = load_yaml(f"{PROVISIONING}/datasources/prometheus.yml")["datasources"]
    for panel in dashboard()["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == source["uid"]


def test_dashboards_are_read_from_the_mounted_folder() -> None:
    [provider] = load_yaml(f"{PROVISIONING}/dashboards/lite-detr.yml")["providers"]
    mounts = load_yaml("docker-compose.yml")["services"]["grafana"]["volumes"]
    assert f"./docker/grafana/dashboards:{provider['options']['path']}:ro" in mounts
