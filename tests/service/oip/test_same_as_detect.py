"""The same image over HTTP, gRPC and the Open Inference Protocol over each: the same result."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http

from lite_detr_client import DetectOptions, GrpcClient
from tests.service.oip.running_service import Served
from tests.service.oip.triton_requests import MODEL, grpc_input, http_input
from tests.support.images import encode_png, solid_png

Clients = tuple[Any, Any]  # of HTTP and of gRPC


@pytest.fixture
def clients(http: Any, grpc: Any) -> Clients:
    return http, grpc


def from_tensors(result: Any) -> list[tuple[Any, ...]]:
    """Rows of label, class, score and box, as 32-bit numbers."""
    count = int(result.as_numpy("num_detections")[0, 0])
    columns = [result.as_numpy(name)[0, :count] for name in ("class_names", "class_ids", "scores")]
    names = [name if isinstance(name, str) else name.decode() for name in columns[0]]
    boxes = [tuple(box) for box in result.as_numpy("boxes")[0, :count]]
    return list(zip(names, columns[1], columns[2], boxes, strict=True))


def from_detections(detections: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    single = np.float32
    return [
        (
            found["label"],
            found["class_id"],
            single(found["score"]),
            tuple(single(found["box"][side]) for side in ("xmin", "ymin", "xmax", "ymax")),
        )
        for found in detections
    ]


def from_client(result: Any) -> list[tuple[Any, ...]]:
    sides = ("xmin", "ymin", "xmax", "ymax")
    return from_detections(
        [
            {
                "label": found.label,
                "class_id": found.class_id,
                "score": found.score,
                "box": {side: getattr(found.box, side) for side in sides},
            }
            for found in result.detections
        ]
    )


def test_the_same_image_gets_the_same_numbers_everywhere(service: Served, clients: Clients) -> None:
    http, grpc = clients
    rng = np.random.default_rng(23)
    everything = {"threshold": "0"}
    json_outputs = [
        tritonclient.http.InferRequestedOutput(name, binary_data=False)
        for name in ("num_detections", "boxes", "scores", "class_ids", "class_names")
    ]
    with GrpcClient(service.grpc) as own_client:
        for _ in range(12):
            height, width = rng.integers(20, 300, 2)
            image = encode_png(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            rest = httpx.post(f"{service.url}/detect?threshold=0", content=image).json()
            expected = from_detections(rest["detections"])
            assert expected
            assert from_client(own_client.detect(image, DetectOptions(threshold=0))) == expected
            for client, tensors, outputs in (
                (http, http_input(image), None),
                (http, http_input(image, binary=False), json_outputs),
                (grpc, grpc_input(image), None),
            ):
                result = client.infer(MODEL, tensors, outputs=outputs, parameters=everything)
                assert from_tensors(result) == expected


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        ("threshold=0.7", {"threshold": "0.7"}),
        ("threshold=0.65&max_detections=2", {"threshold": "0.65", "max_detections": 2}),
        ("labels=linear,aztec", {"labels": "linear,aztec"}),
        ("threshold=0&tile=64x80&overlap=0.1", {"threshold": 0, "tile": "64x80", "overlap": "0.1"}),
        ("", {}),
    ],
)
def test_the_same_options_select_the_same(
    service: Served, clients: Clients, query: str, parameters: dict[str, Any]
) -> None:
    http, grpc = clients
    image = solid_png((100, 100, 103), 150, 100)
    rest = httpx.post(f"{service.url}/detect?{query}", content=image).json()
    expected = from_detections(rest["detections"])
    for client, tensors in ((http, http_input(image)), (grpc, grpc_input(image))):
        assert from_tensors(client.infer(MODEL, tensors, parameters=parameters)) == expected


@pytest.mark.parametrize(
    ("image", "query", "parameters"),
    [
        (b"\x00\x01nothing", "", {}),
        (b"%PDF-1.7 and more", "", {}),
        (solid_png((0, 0, 0))[:-30], "", {}),
        (solid_png((0, 0, 0), 1001, 1000), "", {}),
        (solid_png((0, 0, 0)), "labels=unicorn", {"labels": "unicorn"}),
        (solid_png((0, 0, 0)), "max_detections=100000", {"max_detections": 100_000}),
        (solid_png((0, 0, 0)), "tile=63x64", {"tile": "63x64"}),
        (solid_png((0, 0, 0)), "tile=auto&overlap=nan", {"tile": "auto", "overlap": "nan"}),
        (solid_png((0, 0, 0), 800, 800), "tile=64x64", {"tile": "64x64"}),
    ],
    ids=["noise", "pdf", "truncated", "pixels", "label", "count", "tile", "overlap", "many"],
)
def test_the_same_error_has_the_same_status_and_detail(
    service: Served, clients: Clients, image: bytes, query: str, parameters: dict[str, Any]
) -> None:
    http, grpc = clients
    problem = httpx.post(f"{service.url}/detect?{query}", content=image).json()
    for client, tensors in ((http, http_input(image)), (grpc, grpc_input(image))):
        with pytest.raises(tritonclient.http.InferenceServerException) as caught:
            client.infer(MODEL, tensors, parameters=parameters)
        assert caught.value.message() == problem["detail"]
        assert caught.value.status() in (
            str(problem["status"]),
            "StatusCode.INVALID_ARGUMENT",
        )
