"""HTTP = gRPC with a complete core: with the fake device, and with the default model."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import pytest_asyncio
from google.protobuf.json_format import MessageToDict
from PIL import Image

from service.build import open_detector
from service.rest import create_app
from service.rpc.messages import result_message
from service.rpc.pb import detection_pb2 as pb
from tests.service.rpc.caller import Caller, calling, serving, trailing
from tests.support.fake_service import (
    EVERYTHING,
    assert_is_result_of,
    fake_settings,
    open_fake_detector,
    quiet_settings,
    value,
)
from tests.support.images import encode_png, solid_png

pytestmark = pytest.mark.asyncio(loop_scope="module")

Clients = tuple[httpx.AsyncClient, Caller]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients() -> AsyncIterator[Clients]:
    settings = fake_settings(max_image_pixels=1_000_000)
    async with open_fake_detector(settings) as detector, serving(detector) as server:
        transport = httpx.ASGITransport(create_app(detector, settings))
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://service") as http,
            calling(server) as caller,
        ):
            caller.detector = detector  # type: ignore[attr-defined]
            yield http, caller


def _as_json(response: pb.DetectResponse) -> dict[str, Any]:
    document: dict[str, Any] = MessageToDict(
        response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    del document["timings_ms"], document["request_id"]
    return document


def _of_http(response: dict[str, Any]) -> dict[str, Any]:
    return {key: response[key] for key in ("model", "image", "detections")}


async def test_the_same_image_gets_the_same_numbers_over_both(clients: Clients) -> None:
    http, caller = clients
    rng = np.random.default_rng(11)
    for _ in range(20):
        height, width = rng.integers(20, 300, 2)
        data = encode_png(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        over_http = await http.post("/detect?threshold=0", content=data)
        options = pb.DetectOptions(threshold=0)
        over_grpc = await caller.detect(pb.DetectRequest(image=data, options=options))
        batch = pb.DetectBatchRequest(requests=[pb.DetectRequest(image=data, options=options)])
        in_batch = (await caller.detect_batch(batch)).outcomes[0].response
        stream = caller.detect_stream(iter([pb.DetectRequest(image=data, options=options)]))
        (in_stream,) = [outcome.response async for outcome in stream]
        expected = _of_http(over_http.json())
        assert expected["detections"]
        for response in (over_grpc, in_batch, in_stream):
            assert _as_json(response) == expected


async def test_the_same_options_select_the_same(clients: Clients) -> None:
    http, caller = clients
    data = solid_png((100, 100, 103))
    for query, options in (
        ("threshold=0.7", pb.DetectOptions(threshold=0.7)),
        ("threshold=0.65", pb.DetectOptions(threshold=0.65)),
        ("max_detections=2", pb.DetectOptions(max_detections=2)),
        ("labels=linear,aztec", pb.DetectOptions(labels=["linear", "aztec"])),
    ):
        over_http = (await http.post(f"/detect?{query}", content=data)).json()
        over_grpc = await caller.detect(pb.DetectRequest(image=data, options=options))
        assert _as_json(over_grpc) == _of_http(over_http)


async def test_tiles_get_the_same_numbers_over_both(clients: Clients) -> None:
    http, caller = clients
    image = np.random.default_rng(3).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    data = encode_png(image)
    query = "/detect?threshold=0&tile=64x80&overlap=0.1"
    expected = _of_http((await http.post(query, content=data)).json())
    assert len(expected["detections"]) > 5  # of one image with the fake device
    options = pb.DetectOptions(threshold=0, tile="64x80", overlap=0.1)
    over_grpc = await caller.detect(pb.DetectRequest(image=data, options=options))
    assert _as_json(over_grpc) == expected


@pytest.mark.parametrize(
    ("data", "query", "options"),
    [
        (b"\x00\x01nothing", "", {}),
        (b"%PDF-1.7 and more", "", {}),
        (solid_png((0, 0, 0))[:-30], "", {}),
        (solid_png((0, 0, 0), 1001, 1000), "", {}),
        (solid_png((0, 0, 0)), "labels=unicorn", {"labels": ["unicorn"]}),
        (solid_png((0, 0, 0)), "max_detections=100000", {"max_detections": 100_000}),
        (solid_png((0, 0, 0)), "tile=63x64", {"tile": "63x64"}),
        (solid_png((0, 0, 0)), "tile=auto&overlap=0.6", {"tile": "auto", "overlap": 0.6}),
        (solid_png((0, 0, 0)), "overlap=0.2", {"overlap": 0.2}),
        (solid_png((0, 0, 0), 800, 800), "tile=64x64", {"tile": "64x64"}),
    ],
    ids=[
        "noise",
        "pdf",
        "truncated",
        "pixels",
        "label",
        "count",
        "tile",
        "overlap",
        "alone",
        "many",
    ],
)
async def test_the_same_error_has_the_same_code_and_detail(
    clients: Clients, data: bytes, query: str, options: dict[str, Any]
) -> None:
    http, caller = clients
    over_http = (await http.post(f"/detect?{query}", content=data)).json()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.detect(pb.DetectRequest(image=data, options=pb.DetectOptions(**options)))
    assert trailing(caught.value)["lite-detr-code"] == over_http["code"]
    assert caught.value.details() == over_http["detail"]


async def test_the_same_model_is_described(clients: Clients) -> None:
    http, caller = clients
    entry = (await http.get("/v1/models")).json()["models"][0]
    model = await caller.get_model(pb.GetModelRequest())
    for field in ("name", "version", "description", "variant", "kernel", "default_threshold"):
        assert getattr(model, field) == entry[field]
    assert [{"id": each.id, "name": each.name} for each in model.classes] == entry["classes"]
    for engine, reported in zip(model.engines, entry["engines"], strict=True):
        assert {field: getattr(engine, field) for field in reported} == reported
    assert [engine.kernel for engine in model.engines] == ["fake"]
    assert entry["input"].pop("jpeg_decoding") == "exact"  # only over HTTP and the Open Inference
    for field, size in entry["input"].items():
        assert getattr(model.input, field) == size
    assert list(model.limits.formats) == entry["limits"]["formats"]
    assert model.limits.max_tiles == entry["limits"]["max_tiles"]


async def test_each_frame_of_a_stream_gets_its_own_outcome_in_order(clients: Clients) -> None:
    _, caller = clients
    images = [solid_png((number, 255 - number, 7 * number % 256)) for number in range(60)]
    options = pb.DetectOptions(threshold=0)
    frames = (pb.DetectRequest(image=data, options=options) for data in images)
    outcomes = [outcome async for outcome in caller.detect_stream(frames)]
    assert len(outcomes) == len(images)
    for data, outcome in zip(images, outcomes, strict=True):
        result = await caller.detector.detect(  # type: ignore[attr-defined]
            data, EVERYTHING, request_id=outcome.response.request_id
        )
        assert_is_result_of(data, result)
        assert _as_json(outcome.response) == _as_json(result_message(result))


async def test_cancelled_calls_free_their_slots_and_do_not_affect_others() -> None:
    async with (
        open_fake_detector(fake_settings(fake_base_ms=300)) as detector,
        serving(detector) as server,
        calling(server) as caller,
    ):
        calls = [caller.detect(pb.DetectRequest(image=solid_png((9, 9, n)))) for n in range(8)]
        tasks = [asyncio.ensure_future(call) for call in calls]
        while detector.active < len(calls):
            await asyncio.sleep(0.001)
        for call in calls[1:]:
            call.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert tasks[0].result().detections
        while value(detector, "slots_in_use"):
            await asyncio.sleep(0.001)
        outcomes = {"protocol": "grpc", "outcome": "cancelled"}
        assert value(detector, "requests_total", **outcomes) == len(calls) - 1
        assert value(detector, "cancelled_total") == len(calls) - 1


def _sample_images() -> list[bytes]:
    """Sample images, whole and cropped to other shapes: several buckets."""
    images = []
    samples = Path(__file__).resolve().parents[3] / "service" / "rest" / "static" / "samples"
    for path in sorted(samples.glob("*.jpg")):
        images.append(path.read_bytes())
        image = Image.open(path)
        buffer = io.BytesIO()
        image.crop((0, 0, image.width // 2, image.height)).save(buffer, "PNG")
        images.append(buffer.getvalue())
    return images


@pytest.mark.slow
async def test_the_default_model_gives_the_same_result_alone_and_in_batches_over_both() -> None:
    images = _sample_images()
    options = pb.DetectOptions(threshold=0.05)
    settings = quiet_settings(device="cpu", max_wait_ms=100)
    async with open_detector(settings) as detector, serving(detector) as server:
        transport = httpx.ASGITransport(create_app(detector, settings))
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://service") as http,
            calling(server) as caller,
        ):

            async def over_http(data: bytes) -> dict[str, Any]:
                return _of_http((await http.post("/detect?threshold=0.05", content=data)).json())

            async def over_grpc(data: bytes) -> dict[str, Any]:
                return _as_json(await caller.detect(pb.DetectRequest(image=data, options=options)))

            alone = [await over_http(data) for data in images]
            batched = await asyncio.gather(
                *(over(data) for data in images for over in (over_http, over_grpc))
            )
    assert sum(len(response["detections"]) for response in alone) > len(images)
    for expected, both in zip(alone, zip(batched[::2], batched[1::2], strict=True), strict=True):
        assert both == (expected, expected)
