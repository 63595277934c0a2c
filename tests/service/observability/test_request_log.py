from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import structlog

from service.core.detector import Detector
from service.observability.logs import configure_logs
from service.observability.metrics import Metrics
from service.observability.request_log import RequestLog
from service.observability.request_scope import ImageTimes, RequestScope, current_scope
from service.rest import create_app
from service.types import DetectOptions
from tests.support.fake_service import fake_settings, open_fake_detector
from tests.support.images import solid_png

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def _track(request_log: RequestLog, **names: Any) -> AbstractContextManager[RequestScope]:
    return request_log.track("http", "POST", path="/detect", **names)


def test_every_line_of_a_request_has_its_request_id_and_trace_id(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs("info", "json")
    with _track(RequestLog(), request_id="order-7", traceparents=[TRACEPARENT]):
        structlog.get_logger("a").info("service")
        logging.getLogger("b").warning("library")
    structlog.get_logger("a").info("afterwards")
    service, library, afterwards = _lines(capsys)
    assert (service["request_id"], service["trace_id"]) == ("order-7", TRACE_ID)
    assert (library["request_id"], library["trace_id"]) == ("order-7", TRACE_ID)
    assert "request_id" not in afterwards


def test_a_line_may_have_the_id_of_one_image_of_a_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs("info", "json")
    with _track(RequestLog(), request_id="order-7"):
        structlog.get_logger("a").info("third", request_id="order-7-3")
    (line,) = _lines(capsys)
    assert line["request_id"] == "order-7-3"
    assert line["trace_id"]


async def test_concurrent_requests_keep_their_own_ids() -> None:
    request_log = RequestLog()

    async def one(number: int) -> None:
        with _track(request_log, request_id=f"r-{number}") as scope:
            await asyncio.sleep(0)
            assert current_scope() is scope
            assert scope.request_id == f"r-{number}"

    await asyncio.gather(*(one(number) for number in range(20)))
    assert current_scope() is None


def test_the_scope_of_a_failed_request_is_closed(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    with pytest.raises(ZeroDivisionError), _track(RequestLog(log_requests=True)):
        _ = 1 / 0
    assert current_scope() is None
    (line,) = _lines(capsys)
    assert (line["event"], line["status"]) == ("request", None)


def test_probes_write_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    with _track(RequestLog(log_requests=True), quiet=True):
        pass
    assert _lines(capsys) == []


def test_the_access_log_line_has_status_and_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    with _track(RequestLog(log_requests=True), request_id="r", traceparents=[TRACEPARENT]) as scope:
        scope.status, scope.route = 429, "/detect"
        Metrics().count_request("http", "overloaded")
    (line,) = _lines(capsys)
    expected = {
        "event": "request",
        "logger": "service.access",
        "transport": "http",
        "method": "POST",
        "route": "/detect",
        "protocol": "http",
        "status": 429,
        "outcome": "overloaded",
        "request_id": "r",
        "trace_id": TRACE_ID,
    }
    assert expected.items() <= line.items()
    assert line["duration_ms"] >= 0


@pytest.fixture
def scopes(monkeypatch: pytest.MonkeyPatch) -> list[RequestScope]:
    """The scopes that request logs close, in order."""
    closed: list[RequestScope] = []

    def keep(scope: RequestScope) -> dict[str, Any]:
        closed.append(scope)
        return {}

    monkeypatch.setattr("service.observability.request_log._access_fields", keep)
    return closed


async def _detect_over_http(detector: Detector, num_files: int) -> None:
    import httpx

    app = create_app(detector, fake_settings(), request_log=RequestLog(log_requests=True))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        files = [("f", (f"{n}.png", solid_png((n, 2, 3)))) for n in range(num_files)]
        response = await client.post("/detect", files=files)
        assert response.status_code == 200, response.text


async def test_images_are_recorded_with_their_sizes_and_times(scopes: list[RequestScope]) -> None:
    async with open_fake_detector(fake_settings()) as detector:
        await _detect_over_http(detector, 1)
    (scope,) = scopes
    assert (scope.images, scope.num_bytes) == (1, len(solid_png((0, 2, 3))))
    assert (scope.route, scope.status, scope.outcome) == ("/detect", 200, "ok")
    assert scope.encode_seconds > 0
    assert scope.last_image is not None
    assert scope.last_image.size == (64, 48)


async def test_the_intervals_of_an_image_have_no_gaps_and_agree_with_its_timings(
    scopes: list[RequestScope],
) -> None:
    async with open_fake_detector(fake_settings(fake_per_image_ms=3)) as detector:
        await _detect_over_http(detector, 1)
    image = scopes[0].last_image
    assert image is not None
    intervals, timings = image.times.intervals(), image.timings
    for before, after in itertools.pairwise(intervals):
        assert after.started == pytest.approx(before.ended)
    for stage in ("decode", "queue", "assemble", "copy", "forward", "postprocess"):
        seconds = sum(
            interval.ended - interval.started for interval in intervals if interval.stage == stage
        )
        assert seconds * 1000 == pytest.approx(getattr(timings, stage), abs=0.5), stage


async def test_several_images_of_a_request_are_counted(scopes: list[RequestScope]) -> None:
    async with open_fake_detector(fake_settings()) as detector:
        await _detect_over_http(detector, 3)
    assert scopes[0].images == 3


async def test_without_access_log_and_trace_no_image_is_recorded() -> None:
    async with open_fake_detector(fake_settings()) as detector:
        with _track(RequestLog(), traceparents=[TRACEPARENT]) as scope:
            await detector.detect(solid_png((1, 2, 3)), DetectOptions(), request_id="r")
    assert (scope.images, scope.last_image) == (0, None)


def test_gaps_between_the_stages_are_queue() -> None:
    times = ImageTimes(
        accepted=1.0,
        decode=(1.25, 2.0),
        engine_started=3.0,
        engine_ms={"assemble": 500.0, "copy": 0.0, "forward": 1000.0},
        select=(5.0, 5.5),
    )
    assert [
        (interval.stage, interval.started, interval.ended) for interval in times.intervals()
    ] == [
        ("queue", 1.0, 1.25),
        ("decode", 1.25, 2.0),
        ("queue", 2.0, 3.0),
        ("assemble", 3.0, 3.5),
        ("forward", 3.5, 4.5),
        ("queue", 4.5, 5.0),
        ("postprocess", 5.0, 5.5),
    ]
