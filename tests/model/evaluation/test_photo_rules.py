"""The rules by which real photos of codes are judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.data.annotations import AnnotatedBox, GroundTruth, ImageAnnotations
from model.detections import Detections
from model.evaluation.evaluate import ImageDetections
from model.evaluation.photo_rules import (
    finds_matrix,
    finds_stripe,
    format_photo_scores,
    judge_photos,
)

CATEGORIES = {1: "qr_code", 2: "data_matrix", 3: "aztec", 4: "pdf417", 5: "linear"}
QR, DATA_MATRIX, LINEAR = 1, 2, 5
Rows = list[tuple[float, int, tuple[float, float, float, float]]]
SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "photos" / "codes"


def truth_of(*photos: list[tuple[int, tuple[float, float, float, float]]]) -> GroundTruth:
    return GroundTruth(
        tuple(
            ImageAnnotations(
                number,
                f"{number}.png",
                tuple(
                    AnnotatedBox(key, (x0, y0, x1 - x0, y1 - y0), (x1 - x0) * (y1 - y0))
                    for key, (x0, y0, x1, y1) in boxes
                ),
            )
            for number, boxes in enumerate(photos, 1)
        ),
        CATEGORIES,
    )


def found(image_id: int, rows: Rows) -> ImageDetections:
    return ImageDetections(
        image_id,
        Detections(
            np.array([row[0] for row in rows], np.float32),
            np.array([row[1] for row in rows], np.int64),
            np.array([row[2] for row in rows], np.float32).reshape(-1, 4),
        ),
        10.0,
    )


def test_a_matrix_code_is_found_from_iou_one_half() -> None:
    assert finds_matrix((0, 0, 10, 10), (0, 0, 10, 20))
    assert not finds_matrix((0, 0, 10, 10), (0, 0, 10, 20.1))
    assert not finds_matrix((0, 0, 10, 10), (10, 0, 20, 10))


def test_a_stripe_is_found_by_the_whole_code_however_tall() -> None:
    assert finds_stripe((10, 50, 110, 52), (10, 0, 110, 100))
    assert finds_stripe((10, 50, 110, 52), (10, 0, 110, 1000))


def test_a_stripe_needs_70_percent_covered() -> None:
    assert finds_stripe((0, 0, 100, 10), (30, 0, 130, 10))
    assert not finds_stripe((0, 0, 100, 10), (31, 0, 131, 10))
    assert finds_stripe((0, 0, 100, 10), (0, 3, 100, 13))
    assert not finds_stripe((0, 0, 100, 10), (0, 4, 100, 14))
    assert not finds_stripe((0, 0, 100, 10), (10, 2, 90, 20))  # 80 % across, 80 % down


@pytest.mark.parametrize(("width", "is_found"), [(159, True), (161, False), (72, True)])
def test_a_detection_is_about_as_wide_as_the_stripe(width: float, is_found: bool) -> None:
    assert finds_stripe((0, 0, 100, 10), (0, 0, width, 10)) is is_found


def test_a_detection_may_not_be_narrower_than_six_tenths() -> None:
    # Such a narrow one could not cover 70 % either: coverage is the stricter of the two.
    assert not finds_stripe((0, 0, 100, 10), (20, 0, 79, 10))


def test_a_stripe_that_is_a_line_is_covered_or_not() -> None:
    assert finds_stripe((0, 5, 100, 5), (0, 0, 100, 10))
    assert not finds_stripe((0, 5, 100, 5), (0, 6, 100, 10))


def test_the_width_of_a_turned_code_is_its_height() -> None:
    stripe = (50, 0, 53, 300)
    assert finds_stripe(stripe, (0, 0, 100, 300))
    assert not finds_stripe(stripe, (0, 0, 100, 490))
    assert not finds_stripe(stripe, (0, 0, 100, 200))  # two thirds covered


def test_a_tall_upright_code_is_still_read_across() -> None:
    stripe = (0, 0, 80, 126)
    assert finds_stripe(stripe, (0, 0, 120, 126))
    assert not finds_stripe(stripe, (0, 0, 140, 126))


def test_one_detection_finds_one_code() -> None:
    stripes = [(LINEAR, (0.0, 5.0, 100.0, 5.0)), (LINEAR, (0.0, 8.0, 100.0, 8.0))]
    scores = judge_photos(
        [found(1, [(0.9, LINEAR, (0, 0, 100, 10))])], truth_of(stripes), threshold=0.5
    )
    assert (scores.linear.hits, scores.linear.codes) == (1, 2)


def test_detections_are_assigned_so_that_most_codes_are_found() -> None:
    # The first detection fits both codes, the second only the first one.
    truth = truth_of([(QR, (0, 0, 10, 10)), (QR, (3, 0, 13, 10))])
    rows: Rows = [(0.9, QR, (2, 0, 12, 10)), (0.8, QR, (-3, 0, 7, 10))]
    assert judge_photos([found(1, rows)], truth, 0.5).matrix.hits == 2


def test_a_wrong_class_is_no_hit_unless_classes_are_ignored() -> None:
    truth = truth_of([(QR, (0, 0, 10, 10))])
    predictions = [found(1, [(0.9, DATA_MATRIX, (0, 0, 10, 10))])]
    assert judge_photos(predictions, truth, 0.5).matrix.hits == 0
    assert judge_photos(predictions, truth, 0.5, ignore_class=True).matrix.hits == 1


def test_detections_below_the_threshold_do_not_exist() -> None:
    truth = truth_of([(QR, (0, 0, 10, 10))], [])
    predictions = [
        found(1, [(0.49, QR, (0, 0, 10, 10))]),
        found(2, [(0.49, QR, (0, 0, 10, 10))]),
    ]
    scores = judge_photos(predictions, truth, 0.5)
    assert (scores.matrix.hits, scores.false_alarms, scores.code_free_photos) == (0, 0, 1)
    scores = judge_photos(predictions, truth, 0.49)
    assert (scores.matrix.hits, scores.false_alarms) == (1, 1)


def test_each_detection_on_a_code_free_photo_is_a_false_alarm() -> None:
    rows: Rows = [(0.9, QR, (0, 0, 10, 10)), (0.8, LINEAR, (0, 0, 10, 10))]
    scores = judge_photos([found(2, rows)], truth_of([(QR, (0, 0, 10, 10))], [], []), 0.5)
    assert (scores.false_alarms, scores.alarmed_photos, scores.code_free_photos) == (2, 1, 2)


def test_extra_detections_on_a_photo_with_a_code_are_no_false_alarms() -> None:
    rows: Rows = [(0.9, QR, (0, 0, 10, 10)), (0.8, QR, (50, 0, 60, 10))]
    scores = judge_photos([found(1, rows)], truth_of([(QR, (0, 0, 10, 10))]), 0.5)
    assert (scores.matrix.hits, scores.false_alarms, scores.surplus) == (1, 0, 1)


def test_photos_without_predictions_count_as_missed() -> None:
    scores = judge_photos([], truth_of([(QR, (0, 0, 10, 10))], []), 0.5)
    assert (scores.matrix.hits, scores.matrix.codes, scores.false_alarms) == (0, 1, 0)
    assert scores.matrix.recall == 0


def test_the_table_has_a_column_per_detector() -> None:
    truth = truth_of([(QR, (0, 0, 10, 10))], [])
    ours = judge_photos([found(1, [(0.9, QR, (0, 0, 10, 10))])], truth, 0.5)
    peer = judge_photos([], truth, 0.5)
    table = format_photo_scores({"ours": ours, "peer": peer})
    assert "| qr_code | 1.00 (1/1) | 0.00 (0/1) |" in table
    assert "| aztec | - | - |" in table
    assert "| **matrix codes together** | 1.00 (1/1) | 0.00 (0/1) |" in table


def test_names_are_one_cell_of_the_table_each() -> None:
    truth = truth_of([(QR, (0, 0, 10, 10))])
    named = replace(truth, categories={**truth.categories, QR: "on|off"})
    table = format_photo_scores({"a|b": judge_photos([], named, 0.5)})
    assert table.splitlines()[0] == r"|  | a\|b |"
    assert r"| on\|off | 0.00 (0/1) |" in table


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no photos next to the checkout ({SHARED})")
def test_boxes_equal_to_the_ground_truth_find_all_but_stripes_read_twice() -> None:
    truth = GroundTruth.read(SHARED / "photos.json")
    perfect = [
        found(photo.image_id, [(1.0, box.category_id, box.xyxy) for box in photo.boxes])
        for photo in truth.images
    ]
    scores = judge_photos(perfect, truth, 0.5)
    assert [(part.name, part.codes) for part in scores.per_class] == [
        ("qr_code", 64),
        ("data_matrix", 32),
        ("aztec", 22),
        ("pdf417", 29),
        ("linear", 177),
    ]
    assert scores.matrix.recall == scores.linear.recall == 1
    assert (scores.false_alarms, scores.code_free_photos) == (0, 21)
