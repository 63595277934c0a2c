from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from service.observability.metrics import STAGES, Metrics
from service.observability.request_log import RequestLog
from service.types import StageTimings
from tests.support.fake_device import FAKE_MODEL


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(max_batch_size=8)


TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
TIMINGS = StageTimings(0.5, 12.0, 3.0, 0.5, 0.0, 30.0, 0.5, 46.5)


def _openmetrics(metrics: Metrics) -> list[Metric]:
    body, content_type = metrics.render("application/openmetrics-text;version=1.0.0,*/*;q=0.1")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    return list(openmetrics_families(body.decode()))


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


def test_observe_timings_observes_all_stages_of_an_image(metrics: Metrics) -> None:
    timings = {stage: float(n + 1) for n, stage in enumerate(StageTimings._fields)}
    metrics.observe_timings(StageTimings(**timings))
    assert timings.keys() == set(STAGES) - {"encode"}
    for stage, milliseconds in timings.items():
        value = metrics.registry.get_sample_value("lite_detr_stage_seconds_sum", {"stage": stage})
        assert value == pytest.approx(milliseconds / 1000)


def test_the_duration_of_a_request_counts_from_its_scope(metrics: Metrics) -> None:
    for outcome in ("ok", "overloaded", "internal", "cancelled"):
        with RequestLog().track("http", "POST") as scope:
            scope.started -= 2.0
            metrics.count_request("http", outcome)
    for result, count in {"ok": 1, "error": 2, "cancelled": 1}.items():
        labels = {"protocol": "http", "result": result}
        name = "lite_detr_request_seconds"
        assert metrics.registry.get_sample_value(f"{name}_count", labels) == count
        seconds = metrics.registry.get_sample_value(f"{name}_sum", labels)
        assert seconds is not None
        assert seconds >= 2.0 * count


def test_a_sampled_trace_adds_exemplars(metrics: Metrics) -> None:
    with RequestLog().track("http", "POST", traceparents=[TRACEPARENT]):
        metrics.observe_timings(TIMINGS)
        metrics.count_request("http", "ok")
    found = {
        (sample.name, sample.labels.get("stage"))
        for family in _openmetrics(metrics)
        for sample in family.samples
        if sample.exemplar and sample.exemplar.labels == {"trace_id": TRACE_ID}
    }
    assert found == {
        ("lite_detr_stage_seconds_bucket", "total"),
        ("lite_detr_stage_seconds_bucket", "forward"),
        ("lite_detr_stage_seconds_bucket", "queue"),
        ("lite_detr_request_seconds_bucket", None),
    }


@pytest.mark.parametrize("parents", [[], [TRACEPARENT.removesuffix("1") + "0"]])
def test_an_unsampled_trace_adds_no_exemplars(metrics: Metrics, parents: list[str]) -> None:
    with RequestLog().track("http", "POST", traceparents=parents):
        metrics.observe_timings(TIMINGS)
        metrics.count_request("http", "ok")
    samples = [sample for family in _openmetrics(metrics) for sample in family.samples]
    assert samples
    assert not [sample for sample in samples if sample.exemplar]


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/html",
        "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        "text/plain;version=not-a-number",
    ],
)
def test_without_openmetrics_in_accept_the_text_format_is_returned(
    metrics: Metrics, accept: str
) -> None:
    body, content_type = metrics.render(accept)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert not body.endswith(b"# EOF\n")


def test_both_formats_have_the_same_metrics(metrics: Metrics) -> None:
    metrics.set_model(FAKE_MODEL)
    metrics.count_request("grpc", "ok")
    metrics.observe_timings(TIMINGS)
    text = {family.name for family in text_string_to_metric_families(_text(metrics))}
    openmetrics = {family.name for family in _openmetrics(metrics)}
    assert text == openmetrics


def test_an_unknown_stage_is_a_key_error(metrics: Metrics) -> None:
    with pytest.raises(KeyError):
        metrics.observe_stage("unknown", 1.0)


def test_two_services_in_one_process_have_separate_metrics(metrics: Metrics) -> None:
    other = Metrics()
    other.cancelled.inc()
    assert metrics.registry.get_sample_value("lite_detr_cancelled_total") == 0


def test_a_gauge_is_read_at_each_scrape(metrics: Metrics) -> None:
    depth = 3
    metrics.add_gauge("queue_depth", "Images waiting", lambda: depth)
    depth = 5
    assert metrics.registry.get_sample_value("lite_detr_queue_depth") == 5


def test_the_served_model_is_a_metric(metrics: Metrics) -> None:
    metrics.set_model(FAKE_MODEL)
    assert f'name="fake",variant="{FAKE_MODEL.config.name}"' in _text(metrics)


def test_process_metrics_cover_edge_and_engine(metrics: Metrics) -> None:
    pid: int | None = None
    metrics.add_engine(lambda: pid)
    assert "lite_detr_edge_process_resident_memory_bytes" in _text(metrics)
    assert "lite_detr_engine_process_resident_memory_bytes" not in _text(metrics)
    pid = os.getpid()
    assert 'lite_detr_engine_process_resident_memory_bytes{engine="0"}' in _text(metrics)


def test_engines_have_labels_and_each_family_appears_once(metrics: Metrics) -> None:
    metrics.add_engine(os.getpid, "0")
    metrics.add_engine(os.getppid, "1")
    metrics.add_engine(lambda: None, "2")
    text = _text(metrics)
    assert text.count("# TYPE lite_detr_engine_process_cpu_seconds_total counter") == 1
    value = metrics.registry.get_sample_value
    name = "lite_detr_engine_process_resident_memory_bytes"
    assert value(name, {"engine": "0"})
    assert value(name, {"engine": "1"})
    assert value(name, {"engine": "2"}) is None


def test_names_and_units_follow_the_naming_rules(metrics: Metrics) -> None:
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
def test_promtool_reports_nothing(metrics: Metrics) -> None:
    subprocess.run(["promtool", "check", "metrics"], input=_text(metrics).encode(), check=True)
