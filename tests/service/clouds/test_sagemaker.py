"""SageMaker's contract for containers: /ping and /invocations."""

from __future__ import annotations

import json

import pytest

from service.access.api_keys import Scope, key_line, new_key
from service.errors import Overloaded
from tests.service.clouds.conftest import Connect, MakeImage, text_of
from tests.service.rest.standin import StandIn

VARIABLES = {"SAGEMAKER_BIND_TO_PORT": "8080"}
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"


async def test_ping_is_200_only_while_the_service_is_ready(
    connect: Connect, standin: StandIn
) -> None:
    async with connect(VARIABLES) as client:
        assert (await client.get("/ping")).status_code == 200
        standin.ready = False
        response = await client.get("/ping")
        assert (response.status_code, response.json()["code"]) == (503, "not_ready")


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png", "application/x-image"])
async def test_invocations_takes_images_as_detect_does(
    connect: Connect, image: MakeImage, standin: StandIn, kind: str
) -> None:
    data = image(form="PNG" if kind == "image/png" else "JPEG")
    headers = {"Content-Type": kind, "Accept": "application/json"}
    async with connect(VARIABLES) as client:
        invoked = (await client.post("/invocations", content=data, headers=headers)).json()
        detected = (await client.post("/detect", content=data, headers=headers)).json()
    assert invoked["detections"] == detected["detections"] != []
    assert 'protocol="sagemaker"' in standin.metrics.render("")[0].decode()


async def test_json_has_the_image_and_options(connect: Connect, image: MakeImage) -> None:
    body = {"inputs": text_of(image()), "parameters": {"labels": ["linear"]}}
    async with connect(VARIABLES) as client:
        (found,) = (await client.post("/invocations", json=body)).json()
    assert found["label"] == "linear"


@pytest.mark.parametrize(
    ("attributes", "labels"),
    [
        ("labels=linear", ["linear"]),
        ("threshold=0.9&trace=1", ["qr_code"]),
        ("c000b4f9-df62-4c85-a0bf-7c525f9104a4", ["qr_code", "linear"]),
    ],
)
async def test_options_may_be_custom_attributes(
    connect: Connect, image: MakeImage, attributes: str, labels: list[str]
) -> None:
    headers = {"Content-Type": "image/jpeg", ATTRIBUTES: attributes}
    async with connect(VARIABLES) as client:
        response = await client.post("/invocations", content=image(), headers=headers)
    assert [each["label"] for each in response.json()["detections"]] == labels


ACCEPTED = [
    ("*/*", 200, "application/json"),
    ("", 200, "application/json"),
    ("text/html, application/json;q=0.9", 200, "application/json"),
    ("image/jpeg", 200, "image/jpeg"),
    ("text/csv", 406, "application/problem+json"),
    ("*", 200, "application/json"),
    ("*/*, image/png", 200, "application/json"),
    ("image/png, */*", 200, "image/jpeg"),
    ("image/jpeg;q=0.1, application/json", 200, "application/json"),
    ("application/json; Q=0.2, image/*; q=0.3", 200, "image/jpeg"),
    ("application/json;q=0, */*, image/jpeg;q=0.1", 200, "image/jpeg"),
    ("image/*;q=0", 200, "application/json"),
    ("image/*;q=0, */*;q=0.1", 200, "application/json"),
    ("image/*;q=nan", 200, "image/jpeg"),
    ("application/json;q=0", 406, "application/problem+json"),
    ("*/*;q=0", 406, "application/problem+json"),
]


async def test_accept_chooses_the_format(connect: Connect, image: MakeImage) -> None:
    async with connect(VARIABLES) as client:
        for accept, status, media_type in ACCEPTED:
            headers = {"Content-Type": "image/jpeg", "Accept": accept}
            response = await client.post("/invocations", content=image(), headers=headers)
            assert (response.status_code, response.headers["content-type"]) == (status, media_type)


ERRORS = [
    (b"", "image/jpeg", 400, "invalid_image"),
    (b"not an image", "image/jpeg", 415, "unsupported_image"),
    (b"1,2,3", "text/csv", 415, "unsupported_image"),
    (b"{", "application/json", 400, "malformed_json"),
    (b"x" * (1 << 22), "image/jpeg", 413, "body_too_large"),
]


async def test_errors_are_those_of_detect(connect: Connect) -> None:
    async with connect(VARIABLES) as client:
        for body, kind, status, code in ERRORS:
            headers = {"Content-Type": kind}
            response = await client.post("/invocations", content=body, headers=headers)
            assert (response.status_code, response.json()["code"]) == (status, code)
            assert response.headers["x-request-id"] == response.json()["request_id"]
        assert (await client.get("/invocations")).status_code == 405


async def test_overload_and_keys_are_those_of_the_service(
    connect: Connect, image: MakeImage, standin: StandIn, tmp_path_factory: pytest.TempPathFactory
) -> None:
    key = new_key()
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(key_line("one", [Scope.DETECT], key) + "\n")
    async with connect(VARIABLES, keys=keys) as client:
        refused = await client.post("/invocations", content=image())
        assert (refused.status_code, (await client.get("/ping")).status_code) == (401, 200)
        standin.error = Overloaded("all slots are taken", retry_after_seconds=3)
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "image/jpeg"}
        busy = await client.post("/invocations", content=image(), headers=headers)
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "3")
    assert json.loads(busy.content)["code"] == "overloaded"
