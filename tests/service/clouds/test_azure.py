"""The schema of Azure Machine Learning's AutoML endpoints for object detection."""

from __future__ import annotations

import base64
from typing import Any

from tests.service.clouds.conftest import Connect, MakeImage, text_of


def body_of(*data: Any, **more: Any) -> dict[str, Any]:
    return {"input_data": {"columns": ["image"], "data": list(data)}, **more}


async def test_boxes_are_parts_of_the_images_sides(connect: Connect, image: MakeImage) -> None:
    # As the published sample encodes it: with line ends.
    text = base64.encodebytes(image((200, 100))).decode()
    async with connect({}, cloud="azure") as client:
        response = await client.post("/score", json=body_of(text))
        rows = await client.post("/score", json=body_of([text], params={"max_detections": 1}))
    assert response.json() == [
        {
            "filename": "image_0",
            "boxes": [
                {
                    "box": {"topX": 0.1, "topY": 0.1, "bottomX": 0.4, "bottomY": 0.5},
                    "label": "qr_code",
                    "score": 0.9123,
                },
                {
                    "box": {"topX": 0.5, "topY": 0.2, "bottomX": 0.9, "bottomY": 0.3},
                    "label": "linear",
                    "score": 0.75,
                },
            ],
        }
    ]
    assert [len(each["boxes"]) for each in rows.json()] == [1]


async def test_a_bad_image_has_an_error_and_its_neighbours_boxes(
    connect: Connect, image: MakeImage
) -> None:
    good = text_of(image())
    async with connect({}, cloud="azure") as client:
        response = await client.post("/score", json=body_of(good, "QU!D", good))
        alone = await client.post("/score", json=body_of("QU!D"))
    first, failed, last = response.json()
    assert first["boxes"] == last["boxes"] != []
    assert failed["error"]["code"] == "invalid_image"
    assert "data[1] is not base64" in failed["error"]["message"]
    assert [each["filename"] for each in response.json()] == ["image_0", "image_1", "image_2"]
    assert (alone.status_code, alone.json()["error"]["code"]) == (400, "invalid_image")


OTHER_FORMS = [
    ({}, 400, "input_data"),
    ({"input_data": []}, 400, "input_data"),
    ({"input_data": {"data": ["QQ=="]}}, 400, "columns"),
    ({"input_data": {"columns": ["image", "text"], "data": [["QQ==", "a"]]}}, 400, "columns"),
    ({"input_data": {"columns": ["image"]}}, 400, "data"),
    (body_of(), 400, "empty"),
    (body_of(*["QQ=="] * 4), 422, "at most 3"),
    (body_of(["QQ==", "QQ=="]), 400, "data[0] is not text"),
    (body_of("QQ==", params={"threshold": "high"}), 422, "threshold"),
    (body_of("QQ==", params=3), 400, "not an object"),
]


async def test_a_request_in_another_form_has_an_error(connect: Connect) -> None:
    async with connect({}, cloud="azure") as client:
        for body, status, words in OTHER_FORMS:
            response = await client.post("/score", json=body)
            assert response.status_code == status, response.text
            assert words in response.json()["error"]["message"]
