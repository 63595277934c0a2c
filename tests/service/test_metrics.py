from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.fake_device import FAKE_MODEL
from service.metrics import STAGES, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(max_batch_size=8)


def _text(metrics: Metrics) -> str:
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    return body.decode()


def test_requests_are_counted_by_protocol_and_outcome(metrics: Metrics) -> None:
    metrics.count_request("http", "ok")
    metrics.count_request("http", "ok")
    metrics.count_request("grpc", "overloaded")
    labels = {"protocol": "http", "outcome": "ok"}
    assert metrics.registry.get_sample_value("lite_detr_requests_total", labels) == 2


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_histogram_in_seconds(metrics: Metrics, stage: str) -> None:
    metrics.observe_stage(stage, 0.02)
    value = metrics.registry.get_sample_value("lite_detr_stage_seconds_sum", {"stage": stage})
    assert value == pytest.approx(0.02)


def test_a_stage_that_does_not_exist_is_our_bug(metrics: Metrics) -> None:
    with pytest.raises(KeyError):
        metrics.observe_stage("lunch", 1.0)


def test_two_services_in_a_process_do_not_collide(metrics: Metrics) -> None:
    other = Metrics()
    other.cancelled.inc()
    assert metrics.registry.get_sample_value("lite_detr_cancelled_total") == 0


def test_a_gauge_is_read_when_somebody_asks(metrics: Metrics) -> None:
    depth = 3
    metrics.watch("queue_depth", "Images waiting", lambda: depth)
    depth = 5
    assert metrics.registry.get_sample_value("lite_detr_queue_depth") == 5


def test_the_model_is_told(metrics: Metrics) -> None:
    metrics.describe_model(FAKE_MODEL)
    assert f'name="fake",variant="{FAKE_MODEL.config.name}"' in _text(metrics)


def test_process_metrics_cover_edge_and_engine(metrics: Metrics) -> None:
    pid: int | None = None
    metrics.watch_engine(lambda: pid)
    assert "lite_detr_edge_process_resident_memory_bytes" in _text(metrics)
    assert "lite_detr_engine_process_resident_memory_bytes" not in _text(metrics)
    pid = os.getpid()
    assert "lite_detr_engine_process_resident_memory_bytes" in _text(metrics)


def test_names_and_units_follow_the_rules(metrics: Metrics) -> None:
    metrics.count_request("http", "ok")
    for family in text_string_to_metric_families(_text(metrics)):
        if family.name.startswith("python_"):
            continue
        assert family.name.startswith("lite_detr_")
        assert family.documentation
        if family.type == "counter":
            assert all(s.name.endswith(("_total", "_created")) for s in family.samples)
        if family.type == "histogram":
            assert re.search(r"_(seconds|size|ratio)$", family.name)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_criticise(metrics: Metrics) -> None:
    subprocess.run(["promtool", "check", "metrics"], input=_text(metrics).encode(), check=True)
