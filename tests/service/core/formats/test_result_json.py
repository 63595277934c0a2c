"""format=json."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import orjson
import pytest

from model.detections import Detections
from model.labels import CODE_LABELS
from service.core.encoding import FileResult, ItemError
from service.core.formats import EncodeInput
from service.core.formats.result_json import DetectResponse, FilesResponse, encode_json
from service.types import DetectResult, StageTimings

RESULT = DetectResult(
    model_name="codes",
    model_version="0123456789ab",
    width=640,
    height=480,
    label_names=CODE_LABELS,
    detections=Detections(
        scores=np.array([0.912345, 0.5], dtype=np.float32),
        labels=np.array([4, 0], dtype=np.int64),
        boxes_xyxy=np.array([[1.006, 2, 3.1, 4.999], [0, 0, 640, 480]], dtype=np.float32),
    ),
    timings=StageTimings(0.1, 1.23456, 0, 0.2, 0.05, 30, 0.4, 32),
    request_id="abc",
)
ERROR = ItemError("invalid_image", "The image cannot be read", "it is truncated", 400)


def encode_one(result: DetectResult) -> bytes:
    return encode_json(EncodeInput([FileResult("a", result)], request_id="req")).data


def encode_several(*files: FileResult) -> bytes:
    return encode_json(EncodeInput(files, request_id="req")).data


def test_a_result_has_the_documented_form() -> None:
    assert orjson.loads(encode_one(RESULT)) == {
        "model": {"name": "codes", "version": "0123456789ab"},
        "image": {"width": 640, "height": 480},
        "detections": [
            {
                "label": "linear",
                "class_id": 4,
                "score": 0.9123,
                "box": {"xmin": 1.01, "ymin": 2.0, "xmax": 3.1, "ymax": 5.0},
            },
            {
                "label": "qr_code",
                "class_id": 0,
                "score": 0.5,
                "box": {"xmin": 0.0, "ymin": 0.0, "xmax": 640.0, "ymax": 480.0},
            },
        ],
        "timings_ms": {
            "read": 0.1,
            "decode": 1.235,
            "queue": 0.0,
            "assemble": 0.2,
            "copy": 0.05,
            "forward": 30.0,
            "postprocess": 0.4,
            "total": 32.0,
        },
        "request_id": "abc",
    }


def test_numbers_are_short() -> None:
    assert b"0.9123," in encode_one(RESULT)
    assert b"1.01," in encode_one(RESULT)


def test_no_detections_are_an_empty_list() -> None:
    empty = replace(RESULT, detections=RESULT.detections.keep(slice(0, 0)))
    assert orjson.loads(encode_one(empty))["detections"] == []


def test_a_class_without_a_name_is_named_by_its_number() -> None:
    odd = replace(RESULT, label_names=CODE_LABELS[:2])
    assert orjson.loads(encode_one(odd))["detections"][0]["label"] == "4"


def test_several_files_keep_their_order_and_names() -> None:
    files = [FileResult("b.jpg", RESULT), FileResult("a.jpg", error=ERROR)]
    document = orjson.loads(encode_several(*files))
    assert document["request_id"] == "req"
    good, bad = document["results"]
    assert good == {"file": "b.jpg", **orjson.loads(encode_one(RESULT))}
    assert bad == {
        "file": "a.jpg",
        "error": {
            "code": "invalid_image",
            "title": "The image cannot be read",
            "detail": "it is truncated",
            "status": 400,
        },
    }


def test_offline_results_are_a_bare_array() -> None:
    files = [FileResult(None, RESULT), FileResult("x", error=replace(ERROR, status=None))]
    items = orjson.loads(encode_json(EncodeInput(files, indent=True)).data)
    assert items[0] == orjson.loads(encode_one(RESULT))
    assert set(items[1]["error"]) == {"code", "title", "detail"}


def test_a_file_without_result_and_error_raises() -> None:
    with pytest.raises(ValueError, match="neither"):
        encode_several(FileResult("a"))


def test_the_documents_follow_their_schemas() -> None:
    DetectResponse.model_validate_json(encode_one(RESULT))
    FilesResponse.model_validate_json(
        encode_several(FileResult("a", RESULT), FileResult("b", error=ERROR))
    )
