"""Answers as JSON."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import orjson
import pytest

from model.detections import Detections
from model.labels import COCO_LABELS, CODE_LABELS
from service.core.encoding import (
    FileResult,
    ItemError,
    encode_coco,
    encode_result,
    encode_result_list,
    encode_results,
)
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


def test_an_answer_has_the_documented_form() -> None:
    assert orjson.loads(encode_result(RESULT)) == {
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
    assert b"0.9123," in encode_result(RESULT)
    assert b"1.01," in encode_result(RESULT)


def test_nothing_found_is_an_empty_list() -> None:
    empty = replace(RESULT, detections=RESULT.detections.keep(slice(0, 0)))
    assert orjson.loads(encode_result(empty))["detections"] == []
    assert orjson.loads(encode_coco([FileResult("a", empty)], CODE_LABELS))["annotations"] == []


def test_a_class_without_a_name_is_called_by_its_number() -> None:
    odd = replace(RESULT, label_names=CODE_LABELS[:2])
    assert orjson.loads(encode_result(odd))["detections"][0]["label"] == "4"


def test_several_answers_keep_their_order_and_names() -> None:
    outcomes = [FileResult("b.jpg", RESULT), FileResult("a.jpg", error=ERROR)]
    answers = orjson.loads(encode_results(outcomes, "req"))
    assert answers["request_id"] == "req"
    good, bad = answers["results"]
    assert good == {"file": "b.jpg", **orjson.loads(encode_result(RESULT))}
    assert bad == {
        "file": "a.jpg",
        "error": {
            "code": "invalid_image",
            "title": "The image cannot be read",
            "detail": "it is truncated",
            "status": 400,
        },
    }


def test_a_list_holds_the_same_items_bare() -> None:
    outcomes = [FileResult(None, RESULT), FileResult("x", error=replace(ERROR, status=None))]
    items = orjson.loads(encode_result_list(outcomes, indent=True))
    assert items[0] == orjson.loads(encode_result(RESULT))
    assert set(items[1]["error"]) == {"code", "title", "detail"}


def test_an_outcome_of_nothing_is_our_own_bug() -> None:
    with pytest.raises(ValueError, match="neither"):
        encode_results([FileResult("a")], "req")


def test_coco_boxes_are_corner_and_size() -> None:
    document = orjson.loads(encode_coco([FileResult("a.jpg", RESULT)], CODE_LABELS))
    first = document["annotations"][0]
    assert first["bbox"] == [1.01, 2.0, 2.09, 3.0]
    assert first["area"] == pytest.approx(6.27)
    assert (first["category_id"], first["image_id"], first["iscrowd"]) == (4, 1, 0)
    assert "errors" not in document


def test_coco_categories_leave_the_gaps_out() -> None:
    categories = orjson.loads(encode_coco([], COCO_LABELS))["categories"]
    assert len(categories) == 80
    assert {"id": 90, "name": "toothbrush"} in categories


def test_a_coco_reader_loads_the_answer() -> None:
    faster_coco_eval = pytest.importorskip("faster_coco_eval")
    outcomes = [
        FileResult("a.jpg", RESULT),
        FileResult("b", error=ERROR),
        FileResult("c", RESULT),
    ]
    document = orjson.loads(encode_coco(outcomes, CODE_LABELS))
    truth = faster_coco_eval.COCO(document)
    results = truth.loadRes(document["annotations"])
    evaluation = faster_coco_eval.COCOeval_faster(truth, results, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)
    assert [image["id"] for image in document["images"]] == [1, 3]
