"""The protocol of Label Studio's ML backends, as its client speaks it."""

from __future__ import annotations

import base64
import gzip
from typing import Any

import pytest

from service.access.api_keys import presented_key
from service.errors import Overloaded
from service.label_studio import label_studio_routes
from service.label_studio.label_config import read_label_config
from service.settings import load_settings
from service.transport.http_body import BodyMemory
from tests.service.label_studio.conftest import CONFIG, Connect, MakeImage
from tests.service.rest.standin import StandIn


def uri_of(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def request_of(*images: Any, **more: Any) -> dict[str, Any]:
    """The body of a prediction, with the fields that Label Studio sends."""
    tasks = [
        {"id": number, "data": {"image": image}, "annotations": [], "project": 7}
        for number, image in enumerate(images, start=1)
    ]
    params = {"login": "", "password": "", "context": None}
    return {
        "tasks": tasks,
        "model_version": None,
        "project": "7.1700000000",
        "label_config": CONFIG,
        "params": params,
    } | more


def test_it_is_off_by_default(standin: StandIn) -> None:
    bodies = BodyMemory(1 << 20)
    assert label_studio_routes(standin.as_detector(), load_settings(), bodies) == []


async def test_predictions_are_rectangles_in_percent_in_the_order_of_tasks(
    connect: Connect, image: MakeImage, standin: StandIn
) -> None:
    async with connect() as client:
        body = request_of(uri_of(image((200, 100))), uri_of(image((400, 300))))
        response = await client.post("/predict", json=body)
    first, second = response.json()["results"]
    assert [each["original_width"] for each in (*first["result"], *second["result"])] == [
        200,
        200,
        400,
        400,
    ]
    assert first["model_version"] == "stand-in-0123456789ab"
    assert first["score"] == pytest.approx((0.9123 + 0.75) / 2, abs=1e-4)
    code, bar = first["result"]
    assert code.pop("id") != bar["id"]
    assert code == {
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": 200,
        "original_height": 100,
        "image_rotation": 0,
        "value": {
            "x": 10.0,
            "y": 10.0,
            "width": 30.0,
            "height": 40.0,
            "rotation": 0,
            "rectanglelabels": ["QR code"],
        },
        "score": 0.9123,
    }
    assert bar["value"]["rectanglelabels"] == ["Bar code"]
    text = standin.metrics.render("")[0].decode()
    assert 'requests_total{outcome="ok",protocol="label_studio"} 1.0' in text


async def test_setup_validate_health_and_webhook(connect: Connect, standin: StandIn) -> None:
    labels = {"qr_code": "QR code", "linear": "Bar code", "pdf417": "Bar code"}
    setup = {"project": "7.17", "schema": CONFIG, "hostname": "http://x", "access_token": "t"}
    async with connect() as client:
        found = (await client.post("/setup", json=setup)).json()
        assert found == {"model_version": "stand-in-0123456789ab", "labels": labels}
        early = await client.post("/setup", json=setup | {"schema": "<View></View>"})
        assert early.status_code == 200
        assert "no RectangleLabels" in early.json()["detail"]
        assert (await client.post("/validate", json={"config": CONFIG})).json()["labels"] == labels
        refused = await client.post("/validate", json={"config": "<View></View>"})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_options")
        event = {"action": "ANNOTATION_CREATED", "project": {"id": 7}}
        assert (await client.post("/webhook", json=event)).json()["status"] == "ignored"
        assert (await client.get("/health")).json()["status"] == "UP"
        standin.ready = False
        assert (await client.get("/health")).status_code == 503


@pytest.mark.parametrize("path", ["/setup", "/validate", "/predict"])
async def test_the_body_of_every_request_is_counted(connect: Connect, path: str) -> None:
    limit = 1 << 16
    zipped, encoding = gzip.compress(b" " * limit), {"Content-Encoding": "gzip"}
    async with connect(max_body_bytes=limit, max_bodies_bytes=limit) as client:
        response = await client.post(path, content=zipped, headers=encoding)
        assert response.status_code == 429, response.text
        released = await client.post(path, content=b" " * limit)
        assert released.status_code == 400, released.text


def test_a_label_with_an_alias_is_found_by_both_names_and_results_have_the_alias() -> None:
    config = CONFIG.replace('"QR code"', '"QR code" alias="qr"').replace(
        '"other"', '"?" alias="aztec"'
    )
    labels = read_label_config(config, ("qr_code", "qr", "linear", "aztec", "pdf417")).labels
    assert labels == {
        "qr_code": "qr", "qr": "qr", "linear": "Bar code", "aztec": "aztec", "pdf417": "Bar code"
    }  # fmt: skip


async def test_a_bad_task_has_an_error_and_its_neighbours_a_prediction(
    connect: Connect, image: MakeImage
) -> None:
    good = uri_of(image())
    bad = [
        ("data:image/png;base64,QU!D", "contains '!'"),
        ("data:image/png,abc", "without ;base64"),
        (uri_of(b"x" * 20_000), "looks like text"),
        ("data:", "without a comma"),
        (None, "it takes the URL"),
        (["a"], "it takes the URL"),
        ("http://169.254.169.254/latest/meta-data/", "only data: URIs are read"),
        ("file:///etc/passwd", "only data: URIs are read"),
        ("/etc/passwd", "only data: URIs are read"),
        ("x" * 20_000, "only data: URIs are read"),
    ]
    async with connect() as client:
        for value, words in bad:
            response = await client.post("/predict", json=request_of(good, value, good))
            first, failed, last = response.json()["results"]
            assert len(first["result"]) == len(last["result"]) == 2
            assert failed.keys() == {"error"}  # with a result, Label Studio would store it
            assert words in failed["error"]
            alone = await client.post("/predict", json=request_of(value))
            assert alone.status_code in (400, 415), alone.text


async def test_an_error_that_a_retry_helps_fails_the_request(
    connect: Connect, image: MakeImage, standin: StandIn
) -> None:
    standin.error = Overloaded("all slots are taken", retry_after_seconds=2)
    async with connect() as client:
        response = await client.post("/predict", json=request_of(uri_of(image()), "x"))
    assert (response.status_code, response.headers["retry-after"]) == (429, "2")


REFUSED: list[tuple[Any, int, str]] = [
    ({}, 400, "tasks"),
    ({"tasks": {}}, 400, "tasks"),
    (request_of(label_config=None), 422, "no labelling configuration"),
    (request_of(label_config=7), 422, "no labelling configuration"),
    (request_of(label_config="<View>"), 422, "not XML"),
    (request_of(label_config="<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"), 422, "DOCTYPE"),
    (request_of(label_config="<View>" + "x" * 300_000 + "</View>"), 422, "longer"),
    (request_of(label_config="<a>" * 30_000 + "</a>" * 30_000), 422, "20000 tags"),
    (request_of(label_config=CONFIG.replace("RectangleLabels", "Choices")), 422, "Rectangle"),
    (request_of(label_config=CONFIG.replace("$image", "http://x")), 422, "field of the task"),
    (
        request_of(label_config=CONFIG.replace("QR code", "cat").replace("linear, pdf417", "dog")),
        422,
        "the labels are cat, Bar code, other",
    ),
    (request_of(*["data:,"] * 257), 422, "at most 256"),
]


async def test_requests_in_another_form_are_refused(connect: Connect) -> None:
    async with connect() as client:
        for body, status, words in REFUSED:
            response = await client.post("/predict", json=body)
            assert response.status_code == status, response.text
            assert words in response.json()["detail"]
        assert (await client.post("/predict", content=b"{")).status_code == 400
        assert (await client.post("/predict", json=request_of())).json() == {"results": []}


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Basic " + base64.b64encode(b"label-studio:ldk_x").decode(), "ldk_x"),
        ("basic " + base64.b64encode(b":ldk_x").decode(), "ldk_x"),
        ("Basic " + base64.b64encode(b"ldk_x").decode(), None),
        ("Basic !!", None),
        ("Basic " + base64.b64encode(b"\xff:\xff").decode(), None),
        ("Basic", None),
    ],
)
def test_a_key_may_be_the_password_of_basic_authentication(header: str, key: str | None) -> None:
    assert presented_key({"authorization": header}.get) == key
