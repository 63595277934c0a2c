"""Precision, recall and F1 over score thresholds, confusions, and errors of each image.

All from detections that `run_detector_on` returns and a ground truth, at one IoU. Crowds are no
objects to find; a detection that finds no object is not counted if it is in a crowd of its class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.data.annotations import GroundTruth, ImageAnnotations
from model.detections import Detections
from model.evaluation.evaluate import ImageDetections

MATCH_IOU = 0.5
_CROWD_SHARE = 0.5  # of a detection's area inside a crowd, from which it is not counted
_SAME_F1 = 1e-6  # differences of rounding
_SMOOTHING = 5  # thresholds over which F1 is averaged before the best is chosen
THRESHOLDS: npt.NDArray[np.float64] = np.round(np.linspace(0.01, 0.99, 99), 2)

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ClassCurve:
    """Precision and recall of a class at each of `THRESHOLDS`.

    Attributes:
        name: of the class.
        num_boxes: annotated ones.
        precision: [T], 1 where nothing is detected.
        recall: [T].
        num_found: detections of the class, [T].
    """

    name: str
    num_boxes: int
    precision: Values
    recall: Values
    num_found: Values

    @property
    def f1(self) -> Values:
        """Harmonic mean of precision and recall, [T]."""
        total = self.precision + self.recall
        f1: Values = 2 * self.precision * self.recall / np.maximum(total, 1e-9)
        return f1


@dataclass(frozen=True)
class ImageErrors:
    """Errors on one image at a score threshold."""

    image_id: int
    missed: int
    false: int  # detections that find no object of their class

    @property
    def total(self) -> int:
        """Both kinds of errors."""
        return self.missed + self.false


def class_curves(
    predictions: Sequence[ImageDetections], truth: GroundTruth
) -> tuple[ClassCurve, ...]:
    """Returns the curves of the classes that have boxes, in category order.

    Args:
        predictions: with category ids of `truth`, best score first.
        truth: the annotated boxes.
    """
    counts = truth.counts()
    rows = [_matched(image, found) for image, found in _pairs(predictions, truth)]
    scores = np.concatenate([row.scores for row in rows]) if rows else np.zeros(0)
    labels = np.concatenate([row.labels for row in rows]) if rows else np.zeros(0)
    correct = np.concatenate([row.correct for row in rows]) if rows else np.zeros(0, np.bool_)
    curves = []
    for key, name in truth.categories.items():
        if not counts[key]:
            continue
        own = labels == key
        found = _at_least(scores[own])
        right = _at_least(scores[own & correct])
        precision = np.where(found > 0, right / np.maximum(found, 1), 1.0)
        curves.append(ClassCurve(name, counts[key], precision, right / counts[key], found))
    return tuple(curves)


def mean_f1(curves: Sequence[ClassCurve]) -> Values:
    """Returns the mean of the classes' F1 at each of `THRESHOLDS`; zeros without classes."""
    if not curves:
        return np.zeros(len(THRESHOLDS))
    mean: Values = np.mean([curve.f1 for curve in curves], axis=0)
    return mean


def best_threshold(curves: Sequence[ClassCurve]) -> float | None:
    """Returns the score threshold with the best mean F1; None if every threshold has 0.

    F1 is averaged over neighbouring thresholds. Where several in a row are equally good, their
    middle is the farthest from the scores of right and of wrong detections.
    """
    f1 = mean_f1(curves)
    if f1.max(initial=0.0) <= 0:
        return None
    padded = np.pad(f1, _SMOOTHING // 2, mode="edge")
    smooth = np.convolve(padded, np.ones(_SMOOTHING) / _SMOOTHING, mode="valid")
    best = np.flatnonzero(smooth >= smooth.max() - _SAME_F1)
    rows = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    longest = max(rows, key=len)
    return float(THRESHOLDS[longest[len(longest) // 2]])


def confusion_matrix(
    predictions: Sequence[ImageDetections], truth: GroundTruth, threshold: float
) -> npt.NDArray[np.int64]:
    """Counts which class objects are detected as.

    Args:
        predictions: with category ids of `truth`.
        truth: the annotated boxes.
        threshold: detections with a lower score are ignored.

    Returns:
        [C + 1, C + 1]: rows are annotated classes, columns detected ones, in category order; the
        last row counts detections of nothing, the last column objects without a detection.
    """
    places = {key: place for place, key in enumerate(truth.categories)}
    nothing = len(places)
    matrix = np.zeros((nothing + 1, nothing + 1), np.int64)
    for image, found in _pairs(predictions, truth):
        shown = found.keep(found.scores >= threshold)
        in_crowd = _in_crowds(image, shown)
        boxes = [box for box in image.boxes if not box.crowd]
        iou = pairwise_iou(np.array([b.xyxy for b in boxes]).reshape(-1, 4), shown.boxes_xyxy)
        free_boxes, free_found = set(range(len(boxes))), set(range(len(shown)))
        for place in np.argsort(-iou, axis=None, kind="stable"):
            row, column = divmod(int(place), iou.shape[1])
            if iou[row, column] < MATCH_IOU:
                break
            if row in free_boxes and column in free_found:
                free_boxes.discard(row)
                free_found.discard(column)
                matrix[places[boxes[row].category_id], places[int(shown.labels[column])]] += 1
        for row in free_boxes:
            matrix[places[boxes[row].category_id], nothing] += 1
        for column in free_found:
            if in_crowd[column]:
                continue
            matrix[nothing, places[int(shown.labels[column])]] += 1
    return matrix


def image_errors(
    predictions: Sequence[ImageDetections], truth: GroundTruth, threshold: float
) -> list[ImageErrors]:
    """Returns the errors of each image, most errors first."""
    errors = []
    for image, found in _pairs(predictions, truth):
        shown = found.keep(found.scores >= threshold)
        matched = _matched(image, shown)
        right = int(matched.correct.sum())
        boxes = sum(not box.crowd for box in image.boxes)
        wrong = len(matched.correct) - right
        errors.append(ImageErrors(image.image_id, boxes - right, wrong))
    return sorted(errors, key=lambda each: -each.total)


def pairwise_iou(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> Values:
    """Returns the IoU of [n, 4] and [m, 4] xyxy boxes: [n, m]."""
    shared = _shared_area(first, second)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - shared
    iou: Values = shared / np.maximum(union, 1e-9)
    return iou


def _shared_area(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> Values:
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    area: Values = np.clip(high - low, 0, None).prod(-1).astype(np.float64)
    return area


@dataclass(frozen=True)
class _Matched:
    """Counted detections of an image and whether each finds an object of its class."""

    scores: npt.NDArray[np.floating]
    labels: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_]


def _matched(image: ImageAnnotations, found: Detections) -> _Matched:
    """Matches as COCO does: best score first, each to its best free object of the same class."""
    boxes = [box for box in image.boxes if not box.crowd]
    iou = pairwise_iou(found.boxes_xyxy, np.array([b.xyxy for b in boxes]).reshape(-1, 4))
    classes = np.array([box.category_id for box in boxes], np.int64)
    iou = np.where(found.labels[:, None] == classes[None], iou, 0.0)
    correct = np.zeros(len(found), np.bool_)
    for row in range(len(found)):
        if iou.shape[1] and iou[row].max() >= MATCH_IOU:
            correct[row] = True
            iou[:, int(iou[row].argmax())] = 0.0
    counted = correct | ~_in_crowds(image, found)
    return _Matched(found.scores[counted], found.labels[counted], correct[counted])


def _in_crowds(image: ImageAnnotations, found: Detections) -> npt.NDArray[np.bool_]:
    """Whether each detection is inside a crowd of its class, [N]."""
    crowds = [box for box in image.boxes if box.crowd]
    if not crowds:
        return np.zeros(len(found), np.bool_)
    boxes = found.boxes_xyxy
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    shared = _shared_area(boxes, np.array([box.xyxy for box in crowds]))
    share = shared / np.maximum(areas, 1e-9)[:, None]
    classes = np.array([box.category_id for box in crowds], np.int64)
    inside = (share >= _CROWD_SHARE) & (found.labels[:, None] == classes)
    any_of: npt.NDArray[np.bool_] = np.any(inside, axis=1)
    return any_of


def _pairs(
    predictions: Sequence[ImageDetections], truth: GroundTruth
) -> list[tuple[ImageAnnotations, Detections]]:
    """Returns each image with its detections; none for an image without an entry."""
    by_image = {entry.image_id: entry.detections for entry in predictions}
    empty = Detections(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros((0, 4), np.float32))
    return [(image, by_image.get(image.image_id, empty)) for image in truth.images]


def _at_least(scores: npt.NDArray[np.floating]) -> Values:
    """Returns how many scores reach each of `THRESHOLDS`, [T]."""
    ordered = np.sort(scores.astype(np.float64))
    return (len(ordered) - np.searchsorted(ordered, THRESHOLDS - 1e-9)).astype(np.float64)
