"""Recall and false alarms on photos of printed codes, with a barcode reader's ground truth.

COCO's scores do not fit such a ground truth: a reader reports the corners of a matrix code, but of
a linear code only the stripe that it read, which may be one row of pixels. The rules:

* Detections below the score threshold are ignored.
* A matrix code is found by a detection of its class at IoU >= 0.5.
* A linear code is found by a detection of its class that covers at least 70 % of the stripe and
  is 0.6 to 1.6 times as wide.
* One detection finds at most one code; detections are assigned so that most codes are found.
* Every detection on a photo without any code is a false alarm.

All boxes are axis-aligned; a slanted stripe is represented by the rectangle around it. "Covers"
is the share of the stripe's area inside the detection; along a side of zero length (a stripe that
is a line) it is 0 or 1. "Width" is the extent along which the code is read: the horizontal one,
unless the stripe is more than twice as tall as wide. Then the code is rotated by 90 degrees
(upright retail codes are at most 1.5 times as tall as wide), and heights are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from model.data.annotations import AnnotatedBox, GroundTruth, ImageAnnotations
from model.detections import Detections
from model.evaluation.evaluate import ImageDetections
from model.evaluation.scores import table_cell

MATRIX_CLASSES = ("qr_code", "data_matrix", "aztec", "pdf417")
LINEAR_CLASSES = ("linear",)

_LEAST_IOU = 0.5
_LEAST_COVERED = 0.7
_WIDTH_RATIOS = (0.6, 1.6)
_TURNED_FROM = 2.0  # height over width of a stripe above which it is read top to bottom

Box = Sequence[float] | npt.NDArray[np.floating]  # xmin, ymin, xmax, ymax
Rule = Callable[[Box, Box], bool]  # (annotated, detected) -> found


@dataclass(frozen=True)
class Found:
    """The number of found codes of a kind."""

    name: str
    hits: int
    codes: int

    @property
    def recall(self) -> float:
        """0..1; 0 if there is no code."""
        return self.hits / self.codes if self.codes else 0.0


@dataclass(frozen=True)
class PhotoScores:
    """The scores of a detector on a set of photos, by the rules of this module."""

    per_class: tuple[Found, ...]  # in category order
    matrix: Found  # over MATRIX_CLASSES
    linear: Found  # over LINEAR_CLASSES
    false_alarms: int  # detections on photos without any code
    alarmed_photos: int  # ... and the number of these photos
    code_free_photos: int
    surplus: int  # detections on photos with codes that found none: reported only
    milliseconds_per_image: float


def judge_photos(
    predictions: Sequence[ImageDetections],
    truth: GroundTruth,
    threshold: float,
    *,
    ignore_class: bool = False,
) -> PhotoScores:
    """Counts found codes and false alarms.

    Args:
        predictions: with category ids of `truth`; photos without an entry have no detections.
        truth: the photos and their codes.
        threshold: detections with a lower score are ignored.
        ignore_class: a detection of any class can find a code, for detectors with other classes.

    Returns:
        The counts.
    """
    by_photo = {entry.image_id: entry.detections for entry in predictions}
    hits = dict.fromkeys(truth.categories, 0)
    false_alarms = alarmed = code_free = surplus = 0
    for photo in truth.images:
        seen = by_photo.get(photo.image_id)
        boxes = seen.keep(seen.scores >= threshold) if seen is not None else None
        if not photo.boxes:
            code_free += 1
            false_alarms += len(boxes) if boxes is not None else 0
            alarmed += bool(boxes)
        elif boxes:
            chosen = _found(photo, boxes, truth.categories, ignore_class)
            surplus += len(boxes) - len(chosen)
            for box in chosen:
                hits[box.category_id] += 1
    counts = truth.counts()
    per_class = tuple(Found(name, hits[key], counts[key]) for key, name in truth.categories.items())
    times = [entry.milliseconds for entry in predictions]
    return PhotoScores(
        per_class=per_class,
        matrix=_sum("matrix codes", per_class, MATRIX_CLASSES),
        linear=_sum("linear codes", per_class, LINEAR_CLASSES),
        false_alarms=false_alarms,
        alarmed_photos=alarmed,
        code_free_photos=code_free,
        surplus=surplus,
        milliseconds_per_image=float(np.mean(times)) if times else 0.0,
    )


def _found(
    photo: ImageAnnotations,
    detections: Detections,
    categories: Mapping[int, str],
    ignore_class: bool,
) -> list[AnnotatedBox]:
    """Returns the codes of a photo that are found, each by a different detection."""
    boxes = [box for box in photo.boxes if not box.crowd]
    fits = np.zeros((len(boxes), len(detections)), np.bool_)
    for row, box in enumerate(boxes):
        rule: Rule = finds_stripe if categories[box.category_id] in LINEAR_CLASSES else finds_matrix
        for column, detected in enumerate(detections.boxes_xyxy):
            right_class = ignore_class or detections.labels[column] == box.category_id
            fits[row, column] = right_class and rule(box.xyxy, detected)
    rows, columns = linear_sum_assignment(fits, maximize=True)
    return [boxes[row] for row, column in zip(rows, columns, strict=True) if fits[row, column]]


def finds_matrix(annotated: Box, detected: Box) -> bool:
    """Whether two boxes are the same code: IoU >= 0.5."""
    width = min(annotated[2], detected[2]) - max(annotated[0], detected[0])
    height = min(annotated[3], detected[3]) - max(annotated[1], detected[1])
    if width <= 0 or height <= 0:
        return False
    shared = width * height
    return bool(shared >= _LEAST_IOU * (_area(annotated) + _area(detected) - shared))


def finds_stripe(stripe: Box, detected: Box) -> bool:
    """Whether a detection is the linear code that the stripe was read from."""
    width, height = stripe[2] - stripe[0], stripe[3] - stripe[1]
    covered = _covered(stripe[0], stripe[2], detected[0], detected[2]) * _covered(
        stripe[1], stripe[3], detected[1], detected[3]
    )
    if height > _TURNED_FROM * width:
        length, detected_length = height, detected[3] - detected[1]
    else:
        length, detected_length = width, detected[2] - detected[0]
    least, most = _WIDTH_RATIOS
    return bool(covered >= _LEAST_COVERED and least * length <= detected_length <= most * length)


def _covered(low: float, high: float, from_: float, to: float) -> float:
    """Returns the share of low..high inside from_..to; for a point, 0 or 1."""
    if high <= low:
        return float(from_ <= low <= to)
    return max(0.0, min(high, to) - max(low, from_)) / (high - low)


def _area(box: Box) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def _sum(name: str, parts: Sequence[Found], classes: Collection[str]) -> Found:
    chosen = [part for part in parts if part.name in classes]
    return Found(name, sum(part.hits for part in chosen), sum(part.codes for part in chosen))


def format_photo_scores(columns: Mapping[str, PhotoScores]) -> str:
    """Formats the scores of several detectors as a Markdown table.

    Args:
        columns: scores on the same photos, by detector; at least one.
    """
    scores = list(columns.values())
    rows = [["", *map(table_cell, columns)], ["---", *("---:" for _ in columns)]]
    for number, part in enumerate(scores[0].per_class):
        rows.append([table_cell(part.name), *(_cell(s.per_class[number]) for s in scores)])
    rows.append(["**matrix codes together**", *(_cell(s.matrix) for s in scores)])
    photos = scores[0].code_free_photos
    rows.append([f"false alarms on {photos} code-free photos", *(_alarms(s) for s in scores)])
    rows.append(["ms an image", *(f"{s.milliseconds_per_image:.0f}" for s in scores)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(found: Found) -> str:
    return f"{found.recall:.2f} ({found.hits}/{found.codes})" if found.codes else "-"


def _alarms(scores: PhotoScores) -> str:
    if scores.false_alarms == scores.alarmed_photos:
        return str(scores.false_alarms)
    return f"{scores.false_alarms} (on {scores.alarmed_photos})"
