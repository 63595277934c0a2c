"""format=coco."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from model.labels import COCO_LABELS
from model.weights.info import DEFAULT_MODEL_PATH, read_model_info
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


def test_category_ids_are_those_of_the_model_file() -> None:
    ids = (11, 12, 13, 14, 99)
    result = replace(RESULT, category_ids=ids)
    document = orjson.loads(encode_files(FileResult("a.jpg", result)))
    assert document["annotations"][0]["category_id"] == 99
    assert [category["id"] for category in document["categories"]] == list(ids)
    assert document["info"]["category_ids"] == "training_data"
    none = orjson.loads(encode_coco(EncodeInput([], ("a", "b"), category_ids=(4, 8))).data)
    assert [category["id"] for category in none["categories"]] == [4, 8]


def test_category_ids_of_an_older_file_are_class_indices() -> None:
    document = orjson.loads(encode_files(FileResult("a.jpg", RESULT)))
    assert document["info"]["category_ids"] == "class_index"
    assert "class numbers" in document["info"]["description"]


def test_the_built_in_model_has_class_indices_as_category_ids() -> None:
    """docs/api.md says so."""
    model = read_model_info(DEFAULT_MODEL_PATH)
    data = encode_coco(EncodeInput([], model.labels, category_ids=model.category_ids)).data
    document = orjson.loads(data)
    assert document["info"]["category_ids"] == "class_index"
    ids = [category["id"] for category in document["categories"]]
    assert ids == list(range(len(model.labels)))


@pytest.mark.parametrize("name", ["397133.jpg", "val/000000397133.jpg", "val\\397133.png"])
def test_numeric_file_names_are_image_ids(name: str) -> None:
    document = orjson.loads(encode_files(FileResult("5", error=ERROR), FileResult(name, RESULT)))
    assert [image["id"] for image in document["images"]] == [397133]
    assert [error["image_id"] for error in document["errors"]] == [5]


@pytest.mark.parametrize("name", [None, "", "a.jpg", "1" * 5000, "-1.jpg", "1e3.jpg"])
def test_other_names_are_numbered_by_place(name: str | None) -> None:
    document = orjson.loads(encode_files(FileResult(name, RESULT)))
    assert document["images"][0]["id"] == 1
    assert document["info"]["image_ids"] == "places"


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
