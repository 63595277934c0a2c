"""AP on random choices of the validation images: how much of a difference is chance in the images.

Detections are matched with the annotated boxes once, by COCO's rule for boxes of any size. A choice
of images then only weighs them: an image that is chosen twice counts twice.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.data.annotations import GroundTruth

Floats = npt.NDArray[np.float64]
_THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)  # of the IoU
_RECALLS: Floats = np.linspace(0, 1, 101)
_TINY = np.finfo(np.float64).eps


@dataclass(frozen=True)
class ClassMatches:
    """The N detections of one class, best first.

    Attributes:
        image: int64 [N], index of the image.
        correct: float [10, N], 1 where the detection has a box of its own at an IoU threshold.
        boxes: float [images], annotated boxes of the class by image.
    """

    image: npt.NDArray[np.int64]
    correct: Floats
    boxes: Floats

    def average_precision(self, weights: Floats) -> float | None:
        """The AP if images count as often as their weight; None if they have no such box."""
        total = float(weights @ self.boxes)
        if total == 0:
            return None
        counted = weights[self.image]
        found = np.cumsum(self.correct * counted, axis=1)
        precision = found / np.maximum(np.cumsum(counted), _TINY)
        # The best precision at this recall or a higher one.
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        values = [
            _at_recalls(recall, best) for recall, best in zip(found / total, envelope, strict=True)
        ]
        return float(np.mean(values))


def _at_recalls(recall: Floats, envelope: Floats) -> float:
    """The mean precision at COCO's 101 recalls; 0 at those that are not reached."""
    places = np.searchsorted(recall, _RECALLS, side="left")
    reached = places < len(recall)
    return float(envelope[places[reached]].sum()) / len(_RECALLS)


class Matches:
    """One detector's detections on a validation set, matched.

    Args:
        truth: the set; without crowds.
        path: COCO results file of the detections.
    """

    def __init__(self, truth: GroundTruth, path: Path) -> None:
        """Reads and matches them."""
        rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in json.loads(path.read_text(encoding="utf-8")):
            rows[row["category_id"]].append(row)
        self._classes = [_match_class(truth, key, rows[key]) for key in truth.categories]

    def average_precision(self, weights: Floats) -> float:
        """The mean AP over the classes, if images count as often as their weight.

        Args:
            weights: float [images], in the order of the ground truth.
        """
        found = [each.average_precision(weights) for each in self._classes]
        return float(np.mean([value for value in found if value is not None] or [0.0]))


def _match_class(truth: GroundTruth, category: int, rows: list[dict[str, Any]]) -> ClassMatches:
    places = {image.image_id: place for place, image in enumerate(truth.images)}
    boxes = [
        np.array([box.xywh for box in image.boxes if box.category_id == category]).reshape(-1, 4)
        for image in truth.images
    ]
    rows = sorted(rows, key=lambda row: -row["score"])
    free = [np.ones((len(_THRESHOLDS), len(each)), np.bool_) for each in boxes]
    correct = np.zeros((len(_THRESHOLDS), len(rows)))
    image = np.array([places[row["image_id"]] for row in rows], np.int64)
    for number, (place, row) in enumerate(zip(image.tolist(), rows, strict=True)):
        if len(boxes[place]):
            overlap = _iou(np.array(row["bbox"]), boxes[place])
            correct[:, number] = _take(overlap, free[place])
    return ClassMatches(image, correct, np.array([float(len(each)) for each in boxes]))


def _take(overlap: Floats, free: npt.NDArray[np.bool_]) -> Floats:
    """Gives a detection the free box that it fits best, at each threshold: 1 where there is one.

    Args:
        overlap: [boxes], IoU with each.
        free: [10, boxes]; the box that is taken becomes False.
    """
    open_overlap = np.where(free, overlap, -1.0)
    best = open_overlap.argmax(axis=1)
    taken = open_overlap[np.arange(len(free)), best] >= _THRESHOLDS
    free[taken, best[taken]] = False
    return np.where(taken, 1.0, 0.0)


def _iou(box: Floats, others: Floats) -> Floats:
    """The IoU of a box [4] with others [n, 4], all (left, top, width, height)."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[:2] + box[2:], others[:, :2] + others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    union = box[2:].prod() + others[:, 2:].prod(axis=1) - shared
    return np.asarray(shared / np.maximum(union, _TINY))


def choices(count: int, repeats: int, seed: int = 0) -> Floats:
    """How often each of `count` images is chosen, in choices of as many: [repeats, count].

    Every detector is scored on the same choices, so that differences are paired.
    """
    rng = np.random.default_rng(seed)
    return rng.multinomial(count, np.full(count, 1 / count), size=repeats).astype(np.float64)
