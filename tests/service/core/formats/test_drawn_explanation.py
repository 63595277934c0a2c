"""format=explain through the service with a fake device: figure, limits, and when it is off."""

from __future__ import annotations

import asyncio
import io

import httpx
import orjson
import pytest
from PIL import Image

from service.build import open_detector
from service.ipc.messages import (
    LENGTH,
    BatchDone,
    ExplainRequest,
    RunBatch,
    decode_message,
    encode_message,
)
from service.rest import create_app
from service.settings import given_settings
from tests.support.fake_serve import FakeSettings, fake_backend

JPEG = {"Content-Type": "image/jpeg"}


def photo() -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", (320, 200), "teal").save(encoded, "JPEG")
    return encoded.getvalue()


async def responses(explain: bool, *queries: str) -> list[httpx.Response]:
    """The responses to requests that are sent together."""
    settings = given_settings(explain=explain)
    async with open_detector(settings, fake_backend(FakeSettings())) as detector:
        transport = httpx.ASGITransport(create_app(detector, settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://s", timeout=60) as http:
            return await asyncio.gather(
                *(http.post(f"/detect?{q}", content=photo(), headers=JPEG) for q in queries)
            )


async def test_the_figure_of_a_detection_is_returned() -> None:
    (response,) = await responses(True, "format=explain&threshold=0")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(response.content)) as figure:
        assert figure.size == (1504, 1202)


async def test_it_is_refused_where_it_is_off() -> None:
    (response,) = await responses(False, "format=explain")
    assert response.status_code == 422
    assert "serve --explain" in response.json()["detail"]


async def test_wrong_detections_are_refused_and_ordinary_requests_are_not_affected() -> None:
    ordinary, missing = await responses(True, "threshold=0", "format=explain&detection=77")
    assert ordinary.status_code == 200
    assert missing.status_code == 422
    assert "there is no detection 77; there are " in missing.json()["detail"]


async def test_one_request_at_a_time_is_explained() -> None:
    query = "format=explain&threshold=0"
    found = sorted(r.status_code for r in await responses(True, query, query, query))
    assert found[0] == 200 and found[-1] == 429


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("detection=1", "detection is an option of format=explain"),
        ("format=explain&detection=0", "it takes a whole number from 1 up"),
        ("format=explain&detection=x", "it takes a whole number from 1 up"),
    ],
)
async def test_wrong_options_are_named(query: str, problem: str) -> None:
    (response,) = await responses(True, query)
    assert response.status_code == 422
    assert problem in response.json()["detail"]


def test_messages_keep_what_is_explained() -> None:
    request = ExplainRequest(2, 0.5, 100, (1, 3))
    batch = RunBatch(7, (64, 96), ((3, 1), (4, 9)), {"4": request})
    done = BatchDone(7, 1.0, 2.0, 3.0, explanations={"4": {"label": "cat"}})
    for message in (batch, done, RunBatch(8, (64, 96), ((3, 1),))):
        assert decode_message(encode_message(message)[LENGTH.size :]) == message
    plain = orjson.loads(encode_message(RunBatch(8, (64, 96), ((3, 1),)))[LENGTH.size :])
    assert plain["body"]["explain"] is None
