"""The figures of a step: latency from the scheduled start, errors by kind, saturation."""

from __future__ import annotations

import math

import pytest

from service.load.loop import Exchange
from service.load.report import StepReport, error_kind, percentile, step_report

FOUND = b'{"detections": []}'


def exchange(scheduled: float, done: float, status: int = 200, body: bytes = FOUND) -> Exchange:
    return Exchange(0, 100 + scheduled, 100 + scheduled, 100 + done, status, None, body)


def report(exchanges: list[Exchange], *, interrupted: bool = False) -> StepReport:
    return step_report(exchanges, 10.0, 1.0, 50.0, interrupted=interrupted)


def test_latency_counts_from_the_scheduled_start() -> None:
    late = Exchange(0, scheduled=10.0, sent=11.0, done=11.1, status=200, body=FOUND)
    figures = report([late])
    assert figures.p50_ms == pytest.approx(1100)
    assert figures.late_p99_ms == pytest.approx(1000)


def test_a_step_that_keeps_up_is_not_saturated() -> None:
    figures = report([exchange(n / 10, n / 10 + 0.05) for n in range(10)])
    assert not figures.saturated
    assert figures.errors == {}
    assert figures.ok_per_s == pytest.approx(10, rel=0.1)
    assert figures.p50_ms == figures.max_ms == pytest.approx(50)


def test_a_growing_queue_is_saturation() -> None:
    figures = report([exchange(n / 10, (n + 1) / 5) for n in range(10)])
    assert figures.saturated
    assert figures.unfinished == 5
    assert figures.ok_per_s == 5.0


def test_a_slow_model_is_not_saturated_by_its_usual_latency() -> None:
    exchanges = [exchange(n / 10, n / 10 + 0.75) for n in range(10)]
    assert step_report(exchanges, 10.0, 1.0, 50.0).saturated
    assert not step_report(exchanges, 10.0, 1.0, 750.0).saturated


def test_errors_are_counted_by_kind() -> None:
    busy = b'{"code": "overloaded"}'
    failed = [
        exchange(0.1, 0.2, 429, busy),
        exchange(0.2, 0.3, 429, busy),
        exchange(0.3, 0.4, 502, b"<html>"),
        exchange(0.4, 0.5, 200, b"[1]"),
        exchange(0.5, 0.6, 200, b"\xff"),
        Exchange(0, 100.6),
    ]
    figures = report([exchange(0, 0.1), *failed])
    assert figures.errors == {
        "429 overloaded": 2,
        "200 without detections": 2,
        "502": 1,
        "no response": 1,
    }
    assert (figures.sent, figures.ok, figures.saturated) == (7, 1, True)
    assert figures.p99_ms == pytest.approx(100)


def test_a_call_of_grpc_has_the_name_of_its_status() -> None:
    ok = Exchange(0, 1.0, 1.0, 1.1)
    assert error_kind(ok) == ""
    ok.error = "RESOURCE_EXHAUSTED"
    assert error_kind(ok) == "RESOURCE_EXHAUSTED"


def test_requests_without_a_response_are_left_out_of_an_interrupted_step() -> None:
    figures = report([exchange(0, 0.1), Exchange(0, 100.5)], interrupted=True)
    assert (figures.sent, figures.errors, figures.saturated) == (1, {}, False)
    empty = report([], interrupted=True)
    assert (empty.sent, empty.ok_per_s, empty.p50_ms) == (0, 0.0, None)


def test_percentiles_are_by_nearest_rank() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0], 0.99) == 1.0
    assert math.isnan(percentile([], 0.5))
