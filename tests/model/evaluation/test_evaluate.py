"""COCO scores of small cases whose numbers can be calculated by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model import VARIANTS, ModelConfig
from model.data.annotations import DataError, GroundTruth
from model.data.data_sets import open_coco
from model.detections import Detections
from model.evaluation.evaluate import (
    ImageDetections,
    Scores,
    coco_results,
    evaluate,
    evaluate_coco,
    format_scores,
    run_detector_on,
)

SQUARE = (10.0, 10.0, 100.0, 100.0)  # x, y, width, height


def truth_of(*images: list[tuple[int, tuple[float, ...]]], **more: Any) -> GroundTruth:
    annotations = [
        {"id": 7, "image_id": number, "category_id": category, "bbox": list(bbox), **more}
        for number, boxes in enumerate(images, 1)
        for category, bbox in boxes
    ]
    return GroundTruth.from_coco(
        {
            "images": [{"id": n, "file_name": f"{n}.png"} for n in range(1, len(images) + 1)],
            "annotations": annotations,
            "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        }
    )


def found(image_id: int, *rows: tuple[float, int, tuple[float, ...]]) -> ImageDetections:
    boxes = np.array([(x, y, x + w, y + h) for _, _, (x, y, w, h) in rows], np.float32)
    scores = np.array([row[0] for row in rows], np.float32)
    labels = np.array([row[1] for row in rows], np.int64)
    return ImageDetections(image_id, Detections(scores, labels, boxes.reshape(-1, 4)), 10.0)


def test_perfect_detections_score_one() -> None:
    truth = truth_of([(3, SQUARE), (5, (200, 50, 20, 20))], [(3, (0, 0, 50, 50))])
    scores = evaluate_coco(
        [
            found(1, (0.9, 3, SQUARE), (0.8, 5, (200, 50, 20, 20))),
            found(2, (0.7, 3, (0, 0, 50, 50))),
        ],
        truth,
    )
    assert scores.ap == scores.ap50 == scores.ap75 == scores.ar_100 == pytest.approx(1)
    assert scores.ap_small == scores.ap_medium == scores.ap_large == pytest.approx(1)
    assert [(row.name, row.num_images, row.num_boxes) for row in scores.per_class] == [
        ("cat", 2, 2),
        ("dog", 1, 1),
    ]
    assert [row.ap for row in scores.per_class] == pytest.approx([1, 1])
    assert (scores.num_images, scores.num_boxes, scores.milliseconds_per_image) == (2, 3, 10)


def test_half_of_the_boxes_found_score_51_of_101_recall_points() -> None:
    truth = truth_of([(3, SQUARE), (3, (300, 300, 100, 100))])
    scores = evaluate_coco([found(1, (0.9, 3, SQUARE))], truth)
    assert scores.ap50 == pytest.approx(51 / 101)
    assert scores.ar_1 == scores.ar_100 == pytest.approx(0.5)


def test_a_better_scored_false_alarm_halves_precision() -> None:
    rows = [(0.9, 3, (300.0, 300.0, 50.0, 50.0)), (0.8, 3, SQUARE)]
    scores = evaluate_coco([found(1, *rows)], truth_of([(3, SQUARE)]))
    assert scores.ap50 == pytest.approx(0.5)
    assert scores.ar_1 == 0
    assert scores.ar_10 == pytest.approx(1)


def test_a_false_alarm_with_a_worse_score_costs_nothing() -> None:
    rows = [(0.9, 3, SQUARE), (0.8, 3, (300.0, 300.0, 50.0, 50.0))]
    assert evaluate_coco([found(1, *rows)], truth_of([(3, SQUARE)])).ap50 == pytest.approx(1)


def test_ap_is_the_mean_over_ten_iou_thresholds() -> None:
    # IoU 0.78 passes 0.50, 0.55, 0.60, 0.65, 0.70 and 0.75.
    scores = evaluate_coco([found(1, (0.9, 3, (10, 10, 78, 100)))], truth_of([(3, SQUARE)]))
    assert scores.ap == pytest.approx(0.6)
    assert scores.ap50 == scores.ap75 == pytest.approx(1)


def test_a_wrong_class_finds_nothing() -> None:
    scores = evaluate_coco([found(1, (0.9, 5, SQUARE))], truth_of([(3, SQUARE)]))
    assert scores.ap == 0
    assert [row.name for row in scores.per_class] == ["cat"]


def test_no_detections_at_all_score_zero() -> None:
    scores = evaluate_coco([found(1)], truth_of([(3, SQUARE)]))
    assert (scores.ap, scores.ar_100) == (0, 0)


def test_sizes_without_annotations_have_no_score() -> None:
    scores = evaluate_coco([found(1, (0.9, 3, SQUARE))], truth_of([(3, SQUARE)]))
    assert (scores.ap_small, scores.ap_medium) == (None, None)
    assert scores.ap_large == pytest.approx(1)


def test_nothing_annotated_gives_no_scores() -> None:
    scores = evaluate_coco([found(1, (0.9, 3, SQUARE))], truth_of([]))
    assert scores.ap is None
    assert scores.per_class == ()


def test_detections_on_a_crowd_are_neither_right_nor_wrong() -> None:
    crowd = truth_of([(3, SQUARE)], iscrowd=1)
    alone = truth_of([(3, (300, 300, 50, 50))])
    image = replace(alone.images[0], boxes=alone.images[0].boxes + crowd.images[0].boxes)
    rows = [(0.9, 3, SQUARE), (0.8, 3, (300.0, 300.0, 50.0, 50.0))]
    scores = evaluate_coco([found(1, *rows)], replace(alone, images=(image,)))
    assert scores.ap50 == pytest.approx(1)
    assert scores.num_boxes == 1


def test_predictions_on_an_unknown_image_are_refused() -> None:
    with pytest.raises(DataError, match=r"unknown image ids \[9\]"):
        evaluate_coco([found(9, (0.9, 3, SQUARE))], truth_of([(3, SQUARE)]))


def test_results_have_coco_form() -> None:
    (result,) = coco_results([found(1, (0.5, 3, SQUARE))])
    assert result == {"image_id": 1, "category_id": 3, "bbox": list(SQUARE), "score": 0.5}


def test_scores_read_as_table_and_as_json() -> None:
    scores = evaluate_coco([found(1, (0.9, 3, SQUARE))], truth_of([(3, SQUARE)]))
    table = format_scores(scores)
    assert "| cat | 1 | 1 | 1.000 | 1.000 | 1.000 |" in table
    assert "AP small -" in table
    assert json.loads(scores.to_json())["per_class"][0]["name"] == "cat"


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("on|off", r"on\|off"),
        ("a\\|b", r"a\\\|b"),
        ("<b>", r"\<b>"),
        ("*new*", r"\*new\*"),
        ("two\nlines", "two lines"),
        ("qr_code [left]", "qr_code [left]"),
    ],
)
def test_the_name_of_a_class_is_one_cell_of_the_table(name: str, cell: str) -> None:
    truth = truth_of([(3, SQUARE)])
    named = replace(truth, categories=dict.fromkeys(truth.categories, name))
    table = format_scores(evaluate_coco([found(1, (0.9, 3, SQUARE))], named))
    assert f"\n| {cell} | 1 | 1 | 1.000 | 1.000 | 1.000 |\n" in table
    assert "\n| **all** | 1 | 1 |" in table


class Echo:
    """A predictor that returns the whole image as one detection of each class."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, tuple[int, int]]] = []
        self.pixels: list[np.ndarray[Any, Any]] = []

    def predict(
        self, images: list[Any], padded: tuple[int, int], original_sizes: list[tuple[int, int]]
    ) -> list[Detections]:
        self.batches.append((len(images), padded))
        self.pixels += images
        return [
            Detections(
                np.array([0.9, 0.8], np.float32),
                np.array([0, 1]),
                np.array([[0, 0, width, height]] * 2, np.float32),
            )
            for height, width in original_sizes
        ]


def run_echo(
    folder: Path, truth: GroundTruth, labels: tuple[str, ...] = ("fish", "cat"), batch: int = 1
) -> tuple[list[ImageDetections], Echo]:
    echo = Echo()
    config = replace(
        VARIANTS["lite-dino-r18-small"], shortest_side=64, longest_side=128, num_classes=2
    )
    results = run_detector_on(echo, truth, folder, config, labels, batch_size=batch)  # type: ignore[arg-type]
    return results, echo


def test_a_model_runs_on_images_as_in_serving(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (200, 100), "red").save(tmp_path / "1.png", exif=exif)
    (result,), echo = run_echo(tmp_path, truth_of([(3, (0, 0, 100, 200))]))
    assert echo.pixels[0].shape == (128, 64, 3)
    assert echo.batches == [(1, (128, 64))]
    assert result.detections.labels.tolist() == [3]  # "fish" is no category here
    assert result.detections.boxes_xyxy.tolist() == [[0, 0, 100, 200]]


def test_batches_hold_images_of_one_bucket_and_results_keep_their_order(tmp_path: Path) -> None:
    for number, size in enumerate([(64, 64), (128, 64), (64, 64)], 1):
        Image.new("L", size).save(tmp_path / f"{number}.png")
    results, echo = run_echo(tmp_path, truth_of([], [], []), batch=2)
    assert sorted(echo.batches) == [(1, (64, 128)), (2, (64, 64))]
    assert [result.image_id for result in results] == [1, 2, 3]
    assert results[1].detections.boxes_xyxy.tolist() == [[0, 0, 128, 64]]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (64, 64), (0, 0, 0, 0)), 255),
        (Image.fromarray(np.full((64, 64), 65535, np.uint16)), 255),
        (Image.fromarray(np.full((64, 64), 257 * 40, np.uint16)), 40),
        (Image.new("1", (64, 64), 1), 255),
        (Image.new("LA", (64, 64), (7, 255)), 7),
    ],
    ids=["transparent", "16-bit white", "16-bit dark", "bilevel", "grey with alpha"],
)
def test_any_mode_becomes_rgb(tmp_path: Path, image: Image.Image, expected: int) -> None:
    image.save(tmp_path / "1.png")
    _, echo = run_echo(tmp_path, truth_of([]))
    assert np.unique(echo.pixels[0]).tolist() == [expected]


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png cannot be read"):
        run_echo(tmp_path, truth_of([]))


def test_annotated_classes_that_the_model_lacks_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\['dog'\]"):
        run_echo(tmp_path, truth_of([(5, SQUARE)]))


def small_config() -> ModelConfig:
    return replace(
        VARIANTS["lite-dino-r18-small"],
        num_classes=2,
        d_model=32,
        num_heads=2,
        encoder_layers=1,
        encoder_blocks=1,
        encoder_feedforward=32,
        decoder_layers=1,
        decoder_feedforward=32,
        num_queries=5,
        max_detections=5,
        shortest_side=128,
        longest_side=128,
    )


def test_a_model_is_scored_on_a_folder(tmp_path: Path) -> None:
    from model import build_detector
    from model.predictor import Predictor

    config = small_config()
    truth = truth_of([(3, SQUARE)], [(5, SQUARE)], [])
    for image in truth.images:
        Image.new("RGB", (200, 150), "grey").save(tmp_path / image.file_name)
    (tmp_path / "set.json").write_text(json.dumps(truth.to_coco()))
    reported: list[tuple[int, int]] = []
    scores = evaluate(
        Predictor(build_detector(config), config),
        ("cat", "dog"),
        open_coco(tmp_path / "set.json", tmp_path),
        limit=2,
        results_path=tmp_path / "found.json",
        progress=lambda done, total: reported.append((done, total)),
    )
    assert isinstance(scores, Scores)
    assert (scores.num_images, scores.num_boxes) == (2, 2)
    assert reported == [(0, 2), (1, 2), (2, 2), (2, 2)]
    results = json.loads((tmp_path / "found.json").read_text())
    assert {result["image_id"] for result in results} == {1, 2}
