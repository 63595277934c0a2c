"""format=coco."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from model.labels import COCO_LABELS
from service.core.encoding import FileResult
from service.core.formats import EncodeInput
from service.core.formats.coco import CocoAnswer, encode_coco
from tests.service.core.formats.test_result_json import ERROR, RESULT


def encode_files(*files: FileResult) -> bytes:
    return encode_coco(EncodeInput(files)).data


def test_no_detections_are_no_annotations() -> None:
    empty = replace(RESULT, detections=RESULT.detections.keep(slice(0, 0)))
    assert orjson.loads(encode_files(FileResult("a", empty)))["annotations"] == []


def test_coco_boxes_are_corner_and_size() -> None:
    document = orjson.loads(encode_files(FileResult("a.jpg", RESULT)))
    first = document["annotations"][0]
    assert first["bbox"] == [1.01, 2.0, 2.09, 3.0]
    assert first["area"] == pytest.approx(6.27)
    assert (first["category_id"], first["image_id"], first["iscrowd"]) == (4, 1, 0)
    assert "errors" not in document


def test_coco_categories_leave_the_gaps_out() -> None:
    categories = orjson.loads(encode_coco(EncodeInput([], COCO_LABELS)).data)["categories"]
    assert len(categories) == 80
    assert {"id": 90, "name": "toothbrush"} in categories


def test_a_coco_reader_loads_the_document() -> None:
    faster_coco_eval = pytest.importorskip("faster_coco_eval")
    files = [
        FileResult("a.jpg", RESULT),
        FileResult("b", error=ERROR),
        FileResult("c", RESULT),
    ]
    document = orjson.loads(encode_files(*files))
    truth = faster_coco_eval.COCO(document)
    results = truth.loadRes(document["annotations"])
    evaluation = faster_coco_eval.COCOeval_faster(truth, results, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)
    assert [image["id"] for image in document["images"]] == [1, 3]


def test_the_document_follows_its_schema() -> None:
    CocoAnswer.model_validate_json(
        encode_files(FileResult("a", RESULT), FileResult("b", error=ERROR))
    )
