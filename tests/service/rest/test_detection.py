"""POST /detect around a stand-in detector."""

from __future__ import annotations

import asyncio
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from service.core.formats.coco import CocoAnswer
from service.core.formats.result_json import DetectResponse, FailedFile, FileResponse, FilesResponse
from service.errors import InferenceFailed, Overloaded
from service.images.drawing import CLASS_COLOURS
from service.rest import create_app, schemas
from service.settings import Settings
from service.transport.http_body import BodyMemory
from tests.service.rest.conftest import MakeImage
from tests.service.rest.standin import StandIn, StandInServed

JPEG = {"Content-Type": "image/jpeg"}


async def test_a_raw_image_gets_boxes_in_its_own_pixels(
    client: httpx.AsyncClient, image: MakeImage
) -> None:
    response = await client.post("/detect", content=image((200, 100)), headers=JPEG)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    body = DetectResponse.model_validate_json(response.content)
    assert (body.image.width, body.image.height) == (200, 100)
    assert [found.label for found in body.detections] == ["qr_code", "linear"]
    first = body.detections[0]
    assert first.score == 0.9123
    assert first.box.model_dump() == {"xmin": 20.0, "ymin": 10.0, "xmax": 80.0, "ymax": 50.0}
    assert body.request_id == response.headers["x-request-id"]


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "image/png",
        "IMAGE/JPEG; q=1",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "binary/octet-stream",
        "application/binary",
        "application/x-binary",
        "application/x-download; charset=binary",
        "application/unknown",
        "unknown/unknown",
        "*/*",
        "binary",
        "jpg",
        "application/x-jpg",
    ],
)
async def test_content_decides_and_not_the_declared_type(
    client: httpx.AsyncClient, image: MakeImage, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = await client.post("/detect", content=image(), headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize(
    "content_type", ["text/plain", "text/html", "application/pdf", "video/mp4", "multipart/mixed"]
)
async def test_a_type_that_is_no_image_gets_415(
    client: httpx.AsyncClient, image: MakeImage, content_type: str
) -> None:
    headers = {"Content-Type": content_type}
    response = await client.post("/detect", content=image(), headers=headers)
    assert response.status_code == 415
    assert content_type in response.json()["detail"]


async def test_a_form_with_one_file_gets_the_response_of_a_raw_body(
    client: httpx.AsyncClient, image: MakeImage
) -> None:
    raw = (await client.post("/detect", content=image(), headers=JPEG)).json()
    form = (await client.post("/detect", files={"anything": ("a.jpg", image())})).json()
    assert form["detections"] == raw["detections"]
    assert form["image"] == raw["image"]
    assert "results" not in form


async def test_several_files_have_results_in_their_order(
    client: httpx.AsyncClient, image: MakeImage
) -> None:
    sizes = [(200, 100), (50, 60), (70, 30)]
    files = [
        (f"field{number % 2}", (f"{number}.png", image(size, "PNG")))
        for number, size in enumerate(sizes)
    ]
    response = await client.post("/detect", files=files)
    assert response.status_code == 200
    body = FilesResponse.model_validate_json(response.content)
    assert [result.file for result in body.results] == ["0.png", "1.png", "2.png"]
    found = [result for result in body.results if isinstance(result, FileResponse)]
    assert [(item.image.width, item.image.height) for item in found] == sizes
    assert [item.request_id for item in found] == [
        f"{body.request_id}-{number}" for number in (1, 2, 3)
    ]


async def test_a_bad_file_does_not_affect_the_others(
    client: httpx.AsyncClient, image: MakeImage
) -> None:
    files = [
        ("file", ("good.jpg", image())),
        ("file", ("bad.jpg", image()[:300])),
        ("file", ("notes.pdf", b"%PDF-1.7 hello")),
    ]
    response = await client.post("/detect", files=files)
    assert response.status_code == 200
    good, bad, notes = FilesResponse.model_validate_json(response.content).results
    assert isinstance(good, FileResponse)
    assert isinstance(bad, FailedFile)
    assert isinstance(notes, FailedFile)
    assert (bad.error.status, bad.error.code) == (400, "invalid_image")
    assert "truncated" in bad.error.detail
    assert (notes.error.status, notes.error.code) == (415, "unsupported_image")
    assert "PDF" in notes.error.detail


async def test_an_unexpected_exception_on_one_file_gives_no_details_away(
    client: httpx.AsyncClient, image: MakeImage, standin: StandIn
) -> None:
    standin.error = ZeroDivisionError("secret")
    files = [("file", ("a.jpg", image())), ("file", ("b.jpg", image()))]
    response = await client.post("/detect", files=files)
    assert response.status_code == 200
    assert "secret" not in response.text
    assert [item["error"]["status"] for item in response.json()["results"]] == [500, 500]


async def test_an_overloaded_file_has_a_retry_time(
    client: httpx.AsyncClient, image: MakeImage, standin: StandIn
) -> None:
    standin.error = Overloaded("full", retry_after_seconds=3)
    files = [("file", ("a.jpg", image())), ("file", ("b.jpg", image()))]
    results = (await client.post("/detect", files=files)).json()["results"]
    assert [item["error"]["retry_after_s"] for item in results] == [3, 3]


async def test_options_select(client: httpx.AsyncClient, image: MakeImage) -> None:
    async def labels(query: str) -> list[str]:
        response = await client.post(f"/detect?{query}", content=image(), headers=JPEG)
        assert response.status_code == 200, response.text
        return [found["label"] for found in response.json()["detections"]]

    assert await labels("threshold=0") == ["qr_code", "linear", "aztec"]
    assert await labels("threshold=0.8") == ["qr_code"]
    assert await labels("threshold=0&max_detections=2") == ["qr_code", "linear"]
    assert await labels("labels=linear,aztec&threshold=0.1") == ["linear", "aztec"]
    assert await labels("labels=aztec&labels=%20linear&threshold=0.1") == ["linear", "aztec"]


async def test_options_may_be_fields_of_the_form(
    client: httpx.AsyncClient, image: MakeImage
) -> None:
    response = await client.post(
        "/detect", files={"file": ("a.jpg", image())}, data={"threshold": "0.8"}
    )
    assert [found["label"] for found in response.json()["detections"]] == ["qr_code"]


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("treshold=0.5", "threshold, max_detections, labels, format"),
        ("threshold=1.5", "threshold is '1.5'"),
        ("threshold=nan", "threshold is 'nan'"),
        ("threshold=0_1", "threshold is '0_1'"),
        ("threshold=%D9%A0", "threshold is '\u0660'"),
        ("max_detections=1_0", "max_detections is '1_0'"),
        ("threshold=", "threshold is ''"),
        ("threshold=0.1&threshold=0.2", "threshold is given 2 times"),
        ("max_detections=0", "max_detections is '0'"),
        ("max_detections=2.5", "max_detections is '2.5'"),
        ("max_detections=99999999999999999999", "max_detections"),
        ("labels=", "labels has an empty name"),
        ("labels=qr_code,,linear", "labels has an empty name"),
        ("labels=cat", "'cat'"),
        ("format=xml", "json, coco, image"),
    ],
)
async def test_an_invalid_option_gets_422_and_is_named(
    client: httpx.AsyncClient, image: MakeImage, query: str, named: str
) -> None:
    response = await client.post(f"/detect?{query}", content=image(), headers=JPEG)
    assert response.status_code == 422
    problem = schemas.Problem.model_validate_json(response.content)
    assert problem.code == "invalid_options"
    assert named in problem.detail


async def test_a_coco_response_has_what_a_reader_needs(
    client: httpx.AsyncClient, image: MakeImage
) -> None:
    files = [
        ("file", ("a.jpg", image((200, 100)))),
        ("file", ("b.jpg", b"broken")),
        ("file", ("c.jpg", image((100, 100)))),
    ]
    response = await client.post("/detect?format=coco", files=files)
    body = CocoAnswer.model_validate_json(response.content)
    assert [(image.id, image.file_name) for image in body.images] == [(1, "a.jpg"), (3, "c.jpg")]
    assert [item.id for item in body.annotations] == [1, 2, 3, 4]
    assert {item.image_id for item in body.annotations} == {1, 3}
    assert body.annotations[0].bbox == [20.0, 10.0, 60.0, 40.0]
    assert next(category.name for category in body.categories) == "qr_code"
    assert [failed.image_id for failed in body.errors] == [2]


@pytest.mark.parametrize(
    ("form", "media_type"),
    [("JPEG", "image/jpeg"), ("WEBP", "image/jpeg"), ("PNG", "image/png"), ("GIF", "image/png")],
)
async def test_an_image_response_is_the_whole_image_with_boxes(
    client: httpx.AsyncClient, image: MakeImage, form: str, media_type: str
) -> None:
    body = image((900, 700), form, "black")
    response = await client.post("/detect?format=image", content=body)
    assert response.headers["content-type"] == media_type
    drawn = Image.open(io.BytesIO(response.content))
    drawn.load()
    assert drawn.size == (900, 700)
    colour = np.array(Image.new("RGB", (1, 1), CLASS_COLOURS[0]))[0, 0].astype(int)
    on_the_box = np.array(drawn.convert("RGB"))[200, 90:94].astype(int)
    assert np.abs(on_the_box - colour).max(axis=-1).min() < 90


async def test_format_image_takes_one_file(client: httpx.AsyncClient, image: MakeImage) -> None:
    files = [("file", ("a.jpg", image())), ("file", ("b.jpg", image()))]
    response = await client.post("/detect?format=image", files=files)
    assert response.status_code == 422
    assert "one file" in response.json()["detail"]


async def test_server_timing_has_every_stage(client: httpx.AsyncClient, image: MakeImage) -> None:
    response = await client.post("/detect", content=image(), headers=JPEG)
    stages = [item.partition(";")[0] for item in response.headers["server-timing"].split(", ")]
    assert stages == [
        "read",
        "decode",
        "queue",
        "assemble",
        "copy",
        "forward",
        "postprocess",
        "total",
        "encode",
    ]


async def test_a_failure_of_the_model_gets_500(
    client: httpx.AsyncClient, image: MakeImage, standin: StandIn
) -> None:
    standin.error = InferenceFailed("this image kills")
    response = await client.post("/detect", content=image(), headers=JPEG)
    assert response.status_code == 500
    assert response.json()["code"] == "inference_failed"


async def test_requests_are_counted_by_outcome(
    client: httpx.AsyncClient, image: MakeImage, standin: StandIn
) -> None:
    await client.post("/detect", content=image(), headers=JPEG)
    await client.post("/detect", content=b"nothing", headers=JPEG)
    text = (await client.get("/metrics")).text
    assert 'lite_detr_requests_total{outcome="ok",protocol="http"} 1.0' in text
    assert 'lite_detr_requests_total{outcome="invalid_image",protocol="http"} 1.0' in text


async def test_a_drawn_image_counts_as_a_body_until_it_is_sent(
    standin: StandIn, settings: Settings, image: MakeImage
) -> None:
    upload, statuses = image(), []
    for max_bytes in (len(upload), 1 << 20):
        bodies = BodyMemory(max_bytes)
        app = create_app(standin.as_detector(), settings, bodies=bodies)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            response = await client.post("/detect?format=image", content=upload)
        statuses.append(response.status_code)
        with bodies.account() as everything:
            everything.take(max_bytes)  # nothing else is counted
    assert len(response.content) > 1000
    assert statuses == [429, 200]


async def test_all_files_of_a_form_get_results_of_one_model(
    client: httpx.AsyncClient, standin: StandIn, image: MakeImage
) -> None:
    standin.hold = asyncio.Event()
    earlier = standin.served
    files = [("file", (name, image(), "image/jpeg")) for name in "abc"]
    request = asyncio.create_task(client.post("/detect", files=files))
    await standin.started.wait()
    standin.served = StandInServed(())
    standin.hold.set()
    assert (await request).status_code == 200
    assert [model is earlier for model in standin.models] == [True] * 3
