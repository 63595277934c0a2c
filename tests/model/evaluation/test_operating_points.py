"""Precision, recall, F1, confusions and errors of images."""

from __future__ import annotations

import numpy as np
import pytest

from model.data.annotations import AnnotatedBox, GroundTruth, ImageAnnotations
from model.detections import Detections
from model.evaluation.evaluate import ImageDetections
from model.evaluation.operating_points import (
    THRESHOLDS,
    best_threshold,
    class_curves,
    confusion_matrix,
    image_errors,
    mean_f1,
)

_BOX = (10.0, 10.0, 20.0, 20.0)  # x, y, width, height
_FAR = (60.0, 60.0, 20.0, 20.0)


def _truth(*images: tuple[tuple[int, tuple[float, ...], bool], ...]) -> GroundTruth:
    rows = tuple(
        ImageAnnotations(
            number,
            f"{number}.png",
            tuple(AnnotatedBox(c, b, 400.0, crowd) for c, b, crowd in image),  # type: ignore[arg-type]
        )
        for number, image in enumerate(images, 1)
    )
    return GroundTruth(rows, {1: "a", 2: "b"})


def _found(image_id: int, *rows: tuple[float, int, tuple[float, ...]]) -> ImageDetections:
    boxes = np.array([(x, y, x + w, y + h) for _, _, (x, y, w, h) in rows], np.float32)
    return ImageDetections(
        image_id,
        Detections(
            np.array([score for score, _, _ in rows], np.float32),
            np.array([label for _, label, _ in rows], np.int64),
            boxes.reshape(-1, 4),
        ),
        1.0,
    )


def test_curves_count_each_object_once() -> None:
    truth = _truth(((1, _BOX, False), (1, _FAR, False)))
    found = [_found(1, (0.9, 1, _BOX), (0.8, 1, _BOX), (0.3, 1, _FAR))]
    (curve,) = class_curves(found, truth)
    at = {t: int(np.abs(THRESHOLDS - t).argmin()) for t in (0.2, 0.5, 0.85, 0.95)}
    assert (curve.name, curve.num_boxes) == ("a", 2)
    assert curve.precision[at[0.2]] == pytest.approx(2 / 3)
    assert curve.recall[at[0.2]] == 1.0
    assert (curve.precision[at[0.5]], curve.recall[at[0.5]]) == (0.5, 0.5)
    assert (curve.precision[at[0.85]], curve.recall[at[0.85]]) == (1.0, 0.5)
    assert (curve.precision[at[0.95]], curve.recall[at[0.95]]) == (1.0, 0.0)
    assert curve.f1[at[0.95]] == 0.0


def test_threshold_separates_right_from_wrong_detections() -> None:
    truth = _truth(((1, _BOX, False),), ((2, _BOX, False),))
    found = [
        _found(1, (0.7, 1, _BOX), (0.4, 1, _FAR)),
        _found(2, (0.6, 2, _BOX), (0.3, 1, _FAR)),
    ]
    threshold = best_threshold(class_curves(found, truth))
    assert threshold is not None
    assert 0.4 < threshold <= 0.6


def test_threshold_is_in_the_middle_of_equally_good_ones() -> None:
    truth = _truth(((1, _BOX, False),))
    found = [_found(1, (0.9, 1, _BOX), (0.1, 1, _FAR))]
    assert best_threshold(class_curves(found, truth)) == pytest.approx(0.5, abs=0.03)


def test_rows_of_confusions_are_the_boxes_and_columns_the_detections() -> None:
    rng = np.random.default_rng(2)
    corners = rng.uniform(0, 60, (12, 2))
    boxes = np.concatenate((corners, corners + rng.uniform(10, 40, (12, 2))), 1)
    labels = rng.integers(1, 3, 12).tolist()
    truth = _truth(tuple((labels[n], tuple(boxes[n]), False) for n in range(6)))
    found = [_found(1, *((0.9, labels[n], tuple(boxes[n] + n % 3)) for n in range(3, 12)))]
    matrix = confusion_matrix(found, truth, 0.5)
    for row, key in enumerate((1, 2)):
        assert matrix[row].sum() == labels[:6].count(key)
        assert matrix[:, row].sum() == labels[3:].count(key)
    assert matrix[2, 2] == 0


def test_without_a_hit_there_is_no_threshold() -> None:
    truth = _truth(((1, _BOX, False),))
    assert best_threshold(class_curves([], truth)) is None
    assert best_threshold([]) is None
    assert mean_f1([]).max() == 0


def test_confusions_have_classes_misses_and_detections_of_nothing() -> None:
    truth = _truth(((1, _BOX, False), (2, _FAR, False)), ((1, _BOX, False),))
    found = [_found(1, (0.9, 1, _BOX), (0.8, 1, _FAR)), _found(2, (0.9, 2, _FAR), (0.1, 1, _BOX))]
    matrix = confusion_matrix(found, truth, 0.5)
    assert matrix.tolist() == [[1, 0, 1], [1, 0, 0], [0, 1, 0]]


def test_crowds_are_neither_required_nor_wrong() -> None:
    truth = _truth(((1, _BOX, True), (1, _FAR, False)))
    found = [_found(1, (0.9, 1, _BOX), (0.8, 1, _FAR))]
    (curve,) = class_curves(found, truth)
    assert (curve.num_boxes, curve.precision[0], curve.recall[0]) == (1, 1.0, 1.0)
    assert confusion_matrix(found, truth, 0.5).sum() == 1
    assert image_errors(found, truth, 0.5)[0].total == 0


def test_objects_inside_crowds_are_found_as_others() -> None:
    crowd = (0.0, 0.0, 90.0, 90.0)
    truth = _truth(((1, crowd, True), (1, _BOX, False), (2, _FAR, False)))
    found = [_found(1, (0.9, 1, _BOX), (0.8, 2, _FAR))]
    assert [(c.recall[0], c.precision[0]) for c in class_curves(found, truth)] == [(1, 1), (1, 1)]
    assert confusion_matrix(found, truth, 0.5).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert image_errors(found, truth, 0.5)[0].total == 0


def test_crowds_excuse_only_their_own_class() -> None:
    truth = _truth(((1, _BOX, True), (1, _FAR, False), (2, _FAR, False)))
    found = [_found(1, (0.9, 2, _BOX), (0.8, 1, _FAR), (0.7, 2, _FAR))]
    assert image_errors(found, truth, 0.5)[0].false == 1
    assert confusion_matrix(found, truth, 0.5)[2].tolist() == [0, 1, 0]


def test_images_with_most_errors_come_first() -> None:
    truth = _truth(((1, _BOX, False),), ((1, _BOX, False), (1, _FAR, False)))
    errors = image_errors([_found(1, (0.9, 1, _BOX)), _found(2, (0.9, 2, _BOX))], truth, 0.5)
    assert [(each.image_id, each.missed, each.false) for each in errors] == [(2, 2, 1), (1, 0, 0)]
