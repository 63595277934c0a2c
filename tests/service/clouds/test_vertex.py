"""Vertex AI's contract for containers: health and predict routes, instances and predictions."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from service.errors import NotReady
from service.settings import SettingsError
from tests.service.clouds.conftest import Connect, MakeImage, text_of
from tests.service.rest.standin import StandIn

MODEL = "/v1/endpoints/123/deployedModels/456"
PREDICT = f"{MODEL}:predict"
VARIABLES = {"AIP_HTTP_PORT": "8080", "AIP_HEALTH_ROUTE": MODEL, "AIP_PREDICT_ROUTE": PREDICT}


async def test_health_is_200_only_while_the_service_is_ready(
    connect: Connect, standin: StandIn
) -> None:
    async with connect(VARIABLES) as client:
        assert (await client.get(MODEL)).status_code == 200
        standin.ready = False
        assert (await client.get(MODEL)).status_code == 503


async def test_predictions_are_in_the_order_of_instances(
    connect: Connect, image: MakeImage, standin: StandIn
) -> None:
    sizes = [(200, 100), (120, 90), (300, 200)]
    instances = [{"b64": text_of(image(size))} for size in sizes]
    body = {"instances": instances, "parameters": {"threshold": 0.9, "labels": None}}
    async with connect(VARIABLES) as client:
        response = await client.post(PREDICT, json=body)
    predictions = response.json()["predictions"]
    assert [tuple(each["image"].values()) for each in predictions] == sizes
    assert [[d["label"] for d in each["detections"]] for each in predictions] == [["qr_code"]] * 3
    assert response.headers["content-type"] == "application/json"
    text = standin.metrics.render("")[0].decode()
    assert 'requests_total{outcome="ok",protocol="vertex"} 1.0' in text


BAD_INSTANCES = [
    ({"b64": "QU!D"}, 400, "instances[1].b64 is not base64: it contains '!'"),
    ({"b64": "QUJD"}, 400, "not an image"),
    ({"b64": ""}, 400, "empty"),
    ({"b64": 7}, 400, "instances[1].b64 is not text"),
    ({"url": "x"}, 400, "instances[1].b64 is not text"),
    ("QUJD", 400, "not text"),
    (None, 400, "not text"),
    ({"b64": "http://169.254.169.254/"}, 400, "never downloads"),
]


async def test_a_bad_instance_has_an_error_and_its_neighbours_a_result(
    connect: Connect, image: MakeImage
) -> None:
    good = {"b64": text_of(image())}
    async with connect(VARIABLES) as client:
        for bad, status, words in BAD_INSTANCES:
            response = await client.post(PREDICT, json={"instances": [good, bad, good]})
            alone = await client.post(PREDICT, json={"instances": [bad]})
            first, failed, last = response.json()["predictions"]
            assert first["detections"] == last["detections"] != []
            error = failed["error"]
            assert words in error["message"]
            assert error["status"] == "INVALID_ARGUMENT"
            assert (response.status_code, alone.status_code) == (200, error["code"])
            assert alone.json()["error"]["code"] == error["code"] == status


OTHER_FORMS = [
    (b"", 400, 'no list \\"instances\\"'),
    (b"[]", 400, "not a JSON object"),
    (b'{"instances": []}', 400, "empty"),
    (b'{"instances": {}}', 400, "no list"),
    (b'{"instances": [1, 2, 3, 4]}', 422, "has 4 images; at most 3"),
    (b'{"instances": [%s]}' % b",".join([b'{"b64":""}'] * 10_000), 400, "10000 values"),
    (b'{"instances": [{"b64": "QQ=="}], "parameters": [1]}', 400, "not an object"),
    (b'{"instances": [{"b64": "QQ=="}], "parameters": {"x": 1}}', 422, "unknown parameter"),
    (b'{"instances": [{"b64": "QQ=="}], "parameters": {"threshold": NaN}}', 400, "not JSON"),
    (b'{"instances": [{"b64": "QQ=="}], "parameters": {"threshold": "nan"}}', 422, "nan"),
    (b'{"instances": [{"b64": "QQ=="}], "parameters": {"threshold": 1e999}}', 400, "not JSON"),
    (b'{"instances": [{"b64": "QQ=="}], "parameters": {"format": "image"}}', 422, "format"),
    (b"\xff\xd8\xff\xe0", 400, "is sent as JSON"),
]


async def test_a_request_in_another_form_has_googles_error(connect: Connect) -> None:
    headers = {"Content-Type": "application/json"}
    async with connect(VARIABLES) as client:
        for body, status, words in OTHER_FORMS:
            response = await client.post(PREDICT, content=body, headers=headers)
            assert response.status_code == status, response.text
            assert words in response.text
            error = response.json()["error"]
            assert (error["code"], error["status"]) == (status, "INVALID_ARGUMENT")


async def test_large_bodies_are_read_and_too_large_ones_refused(
    connect: Connect, image: MakeImage
) -> None:
    large = text_of(image((1500, 900), form="BMP")[:900_000])
    async with connect(VARIABLES) as client:
        response = await client.post(PREDICT, json={"instances": [{"b64": large}]})
        assert response.json()["error"]["code"] == 400  # the image lacks pixels
        response = await client.post(PREDICT, json={"instances": [{"b64": large * 2}]})
        assert response.json()["error"]["code"] == 413


async def test_errors_of_the_service_keep_their_status(
    connect: Connect, image: MakeImage, standin: StandIn
) -> None:
    body = {"instances": [{"b64": text_of(image())}]}
    async with connect(VARIABLES) as client:
        with capture_logs() as lines:
            await _check_statuses(client, body, standin)
    assert [line["event"] for line in lines] == ["unexpected error"] * 3


async def _check_statuses(
    client: httpx.AsyncClient, body: dict[str, Any], standin: StandIn
) -> None:
    standin.error = NotReady("loading", retry_after_seconds=2)
    response = await client.post(PREDICT, json=body)
    assert response.json() == {
        "error": {"code": 503, "message": "loading", "status": "UNAVAILABLE"}
    }
    assert response.headers["retry-after"] == "2"
    standin.error = RuntimeError("secret")
    response = await client.post(PREDICT, json=body)
    assert response.json()["error"]["status"] == "INTERNAL"
    assert "secret" not in response.text
    twice = await client.post(PREDICT, json={"instances": body["instances"] * 2})
    assert [each["error"]["code"] for each in twice.json()["predictions"]] == [500, 500]


async def test_a_raw_prediction_is_that_of_detect(connect: Connect, image: MakeImage) -> None:
    async with connect(VARIABLES) as client:
        for kind in ("text/csv", "application/x-www-form-urlencoded", ""):
            other = await client.post(PREDICT, content=b"1,2", headers={"Content-Type": kind})
            assert "not JSON" in other.json()["error"]["message"]
        response = await client.post(
            PREDICT, content=image(), headers={"Content-Type": "image/jpeg"}
        )
    assert response.json()["detections"]


@pytest.mark.parametrize(
    ("variable", "path"),
    [
        ("AIP_PREDICT_ROUTE", "/detect"),
        ("AIP_PREDICT_ROUTE", "/"),
        ("AIP_HEALTH_ROUTE", "/"),
        ("AIP_HEALTH_ROUTE", "/healthz"),
        ("AIP_HEALTH_ROUTE", "/static/a"),
    ],
)
async def test_a_path_of_the_services_own_is_refused(
    connect: Connect, variable: str, path: str
) -> None:
    with pytest.raises(SettingsError, match=f"{path}, but the service has a path of its own"):
        async with connect(VARIABLES | {variable: path}):
            pass


async def test_the_services_own_readiness_may_be_the_health_route(connect: Connect) -> None:
    async with connect(VARIABLES | {"AIP_HEALTH_ROUTE": "/readyz"}) as client:
        assert (await client.get("/readyz")).status_code == 200
