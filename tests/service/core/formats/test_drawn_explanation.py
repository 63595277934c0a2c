"""format=explain through the service with a fake device: figure, limits, metrics, and when off."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator

import httpx
import orjson
import pytest
import pytest_asyncio
from PIL import Image

from service.core.detector import Detector
from service.core.explanations import Explanations
from service.errors import InvalidOptions
from service.ipc.messages import (
    LENGTH,
    BatchDone,
    ExplainRequest,
    RunBatch,
    decode_message,
    encode_message,
)
from service.observability.metrics import Metrics
from service.rest import create_app
from service.rest.query import parse_query_string
from tests.support.fake_service import fake_settings, open_fake_detector, value
from tests.support.images import solid_png

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXPLAIN = "format=explain&threshold=0"
FIVE_DETECTIONS = solid_png((250, 200, 104))


class Service:
    """The application around a detector with the fake device."""

    def __init__(self, detector: Detector, http: httpx.AsyncClient) -> None:
        self.detector = detector
        self._http = http

    async def post(self, query: str, **headers: str) -> httpx.Response:
        headers |= {"Content-Type": "image/png"}
        return await self._http.post(f"/detect?{query}", content=FIVE_DETECTIONS, headers=headers)

    def count(self, outcome: str) -> float:
        return value(self.detector, "explanations_total", outcome=outcome) or 0.0

    def drawn(self, suffix: str, stage: str) -> float:
        return value(self.detector, f"explanation_seconds_{suffix}", stage=stage) or 0.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[Service]:
    settings = fake_settings(explain=True, fake_explain_ms=50)
    async with open_fake_detector(settings) as detector:
        transport = httpx.ASGITransport(create_app(detector, settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://s", timeout=60) as http:
            yield Service(detector, http)


async def test_the_figure_of_a_detection_is_returned_and_measured(service: Service) -> None:
    before = service.count("ok")
    response = await service.post(f"{EXPLAIN}&detection=5")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(response.content)) as figure:
        assert figure.size == (1504, 1202)
    assert service.count("ok") == before + 1
    assert service.drawn("count", "engine") == service.drawn("count", "draw") == before + 1
    assert service.drawn("sum", "engine") >= 0.05
    assert service.drawn("sum", "draw") > 0.0


async def test_a_detection_that_does_not_exist_is_refused_without_another_run(
    service: Service,
) -> None:
    runs, refused = service.drawn("count", "engine"), service.count("invalid_options")
    response = await service.post(f"{EXPLAIN}&detection=6")
    assert response.status_code == 422
    assert "there is no detection 6; there are 5" in response.json()["detail"]
    assert service.drawn("count", "engine") == runs
    assert service.count("invalid_options") == refused + 1


async def test_one_request_at_a_time_is_explained_and_ordinary_ones_are_not_affected(
    service: Service,
) -> None:
    failed = value(service.detector, "images_total", outcome="overloaded") or 0.0
    *explained, plain = await asyncio.gather(
        *(service.post(EXPLAIN) for _ in range(3)), service.post("threshold=0")
    )
    assert sorted(response.status_code for response in explained) == [200, 429, 429]
    refused = next(response for response in explained if response.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert len(plain.json()["detections"]) == 5
    assert value(service.detector, "images_total", outcome="overloaded") == failed + 2


async def test_the_next_request_is_explained_after_one_that_failed(service: Service) -> None:
    late = await service.post(EXPLAIN, **{"X-Request-Timeout-Ms": "1"})
    assert late.status_code == 504
    assert (await service.post(EXPLAIN)).status_code == 200


async def test_explanations_are_refused_where_they_are_off() -> None:
    metrics = Metrics()
    with (
        pytest.raises(InvalidOptions, match="serve --explain"),
        Explanations(metrics, offered=False).turn(),
    ):
        raise AssertionError("not reached")
    labels = {"outcome": "invalid_options"}
    assert metrics.registry.get_sample_value("lite_detr_explanations_total", labels) == 1


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        (b"detection=1", "detection is an option of format=explain"),
        (b"format=explain&detection=0", "it takes a whole number from 1 up"),
        (b"format=explain&detection=x", "it takes a whole number from 1 up"),
    ],
)
async def test_wrong_options_are_named(query: bytes, problem: str) -> None:
    with pytest.raises(InvalidOptions, match=problem):
        parse_query_string(query)


async def test_messages_keep_what_is_explained() -> None:
    request = ExplainRequest(2, 0.5, 100, (1, 3))
    batch = RunBatch(7, (64, 96), ((3, 1), (4, 9)), {"4": request})
    done = BatchDone(7, 1.0, 2.0, 3.0, explanations={"4": {"label": "cat"}}, explain_ms=5.0)
    for message in (batch, done, RunBatch(8, (64, 96), ((3, 1),))):
        assert decode_message(encode_message(message)[LENGTH.size :]) == message
    plain = orjson.loads(encode_message(RunBatch(8, (64, 96), ((3, 1),)))[LENGTH.size :])
    assert plain["body"]["explain"] is None
