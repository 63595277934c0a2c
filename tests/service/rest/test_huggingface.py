"""Hugging Face's client works; so does its request form: JSON with base64."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.service.oip.running_service import served
from tests.service.rest.conftest import MakeImage
from tests.support.images import solid_png

IMAGE = solid_png((100, 100, 103))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served() as service:
        yield service.url


@pytest.fixture(params=["", "/", "/detect?format=huggingface"])
def endpoint(url: str, request: pytest.FixtureRequest) -> str:
    return url + str(request.param)


def _expected(url: str, query: str = "") -> list[tuple[str, float, list[int]]]:
    found = httpx.post(f"{url}/detect{query}", content=IMAGE).json()["detections"]
    return [
        (each["label"], each["score"], [round(value) for value in each["box"].values()])
        for each in found
    ]


def _flat(elements: Any) -> list[tuple[str, float, list[int]]]:
    return [
        (each.label, each.score, [each.box[name] for name in ("xmin", "ymin", "xmax", "ymax")])
        for each in elements
    ]


def test_the_client_detects_objects(url: str, endpoint: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(IMAGE)
    client = InferenceClient(token="unused")
    for image in (IMAGE, path, str(path)):
        assert _flat(client.object_detection(image, model=endpoint)) == _expected(url)
        for threshold in (0.0, 0.9):
            elements = client.object_detection(image, model=endpoint, threshold=threshold)
            assert _flat(elements) == _expected(url, f"?threshold={threshold}")


def test_the_client_shows_our_errors(endpoint: str) -> None:
    client = InferenceClient(token="unused")
    with pytest.raises(HfHubHTTPError) as caught:
        client.object_detection(b"not an image", model=endpoint)
    assert caught.value.response.json()["code"] == "unsupported_image"
    with pytest.raises(HfHubHTTPError) as caught:
        client.object_detection(IMAGE, model=endpoint, threshold=7)
    assert caught.value.response.json()["code"] == "invalid_options"


async def test_json_may_name_another_format_and_our_options(
    client: httpx.AsyncClient, image: MakeImage
) -> None:
    document = {
        "inputs": base64.b64encode(image()).decode(),
        "parameters": {"threshold": None, "labels": ["linear", "aztec"], "max_detections": 1},
    }
    (found,) = (await client.post("/detect?threshold=0", json=document)).json()
    assert found["label"] == "linear"
    assert all(isinstance(value, int) for value in found["box"].values())
    response = await client.post("/detect?threshold=0&format=json", json=document)
    assert [each["label"] for each in response.json()["detections"]] == ["linear"]
    drawn = await client.post("/?format=image", json=document)
    assert drawn.headers["content-type"] == "image/jpeg"


async def test_a_whole_number_may_be_written_with_a_decimal_point(
    client: httpx.AsyncClient, image: MakeImage
) -> None:
    parameters = {"threshold": 0, "max_detections": 2.0}
    document = {"inputs": base64.b64encode(image()).decode(), "parameters": parameters}
    assert len((await client.post("/detect", json=document)).json()) == 2


async def test_several_files_have_a_list_each(client: httpx.AsyncClient, image: MakeImage) -> None:
    files = [("f", ("a.jpg", image())), ("f", ("b.jpg", b"broken"))]
    found, failed = (await client.post("/detect?format=huggingface", files=files)).json()
    assert [each["label"] for each in found] == ["qr_code", "linear"]
    assert failed["error"]["code"] == "invalid_image"


@pytest.mark.parametrize("path", ["/", "/detect"])
@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("", 415, "inputs"),
        ("{", 400, "not JSON"),
        ("[]", 400, "not a JSON object"),
        ('{"image": "QUJD"}', 415, "no text in its field inputs"),
        ('{"inputs": ["QUJD"]}', 415, "no text in its field inputs"),
        ('{"inputs": "QUJD", "parameters": [1]}', 400, "not an object"),
        ('{"inputs": "QU!D"}', 400, "not base64: it contains '!'"),
        ('{"inputs": "https://example.com/a.jpg"}', 400, "never downloads"),
        ('{"inputs": ""}', 400, "empty"),
        ('{"inputs": "QUJD"}', 400, "not an image"),
        ('{"inputs": "QUJD", "parameters": {"treshold": 1}}', 422, "treshold"),
        ('{"inputs": "QUJD", "parameters": {"threshold": true}}', 422, "threshold"),
        ('{"inputs": "QUJD", "parameters": {"threshold": [0.5]}}', 422, "threshold is [0.5]"),
        ('{"inputs": "QUJD", "parameters": {"max_detections": 1.5}}', 422, "is 1.5"),
        ('{"inputs": "QUJD", "parameters": {"labels": [1]}}', 422, "labels has 1"),
    ],
)
async def test_json_in_another_form_is_refused(
    client: httpx.AsyncClient, path: str, body: str, status: int, words: str
) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    response = await client.post(path, content=body, headers=headers)
    assert (response.status_code, words in response.text) == (status, True), response.text
    assert response.headers["content-type"] == "application/problem+json"


async def test_large_json_is_read_outside_the_event_loops_thread(
    client: httpx.AsyncClient, image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.rest import upload

    threads: list[bool] = []
    parse = upload._parse_json

    def recording(body: bytes) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return parse(body)

    monkeypatch.setattr(upload, "_parse_json", recording)
    document = {"inputs": base64.b64encode(image()).decode(), "filler": ""}
    for size in (0, 100_000):
        document["filler"] = "x" * size
        assert (await client.post("/", json=document)).status_code == 200
    assert threads == [True, False]
