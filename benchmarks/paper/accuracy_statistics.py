"""Intervals of the accuracy study: over seeds, and over the images of the validation set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from model.data.annotations import GroundTruth
from model.detections import Detections
from model.evaluation.evaluate import ImageDetections, evaluate_coco

_LEVEL = 0.95
_FEWEST = 2  # values of an interval


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; the ends are None for a single value."""

    mean: float
    low: float | None
    high: float | None

    def format(self, digits: int = 3, factor: float = 1.0) -> str:
        """The mean with half of the interval's width, or with its ends."""
        mean = f"{self.mean * factor:.{digits}f}"
        if self.low is None or self.high is None:
            return mean
        return f"{mean} ± {(self.high - self.low) / 2 * factor:.{digits}f}"

    def ends(self, digits: int = 3, factor: float = 1.0) -> str:
        """`mean (low .. high)`."""
        mean = f"{self.mean * factor:.{digits}f}"
        if self.low is None or self.high is None:
            return mean
        return f"{mean} ({self.low * factor:.{digits}f} .. {self.high * factor:.{digits}f})"


def t_interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of independent values, at least one."""
    mean = float(np.mean(values))
    if len(values) < _FEWEST:
        return Interval(mean, None, None)
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def percentile_interval(mean: float, values: Sequence[float]) -> Interval:
    """The middle 95 % of bootstrap values around the mean of the whole set."""
    tail = 100 * (1 - _LEVEL) / 2
    low, high = np.percentile(values, (tail, 100 - tail))
    return Interval(mean, float(low), float(high))


def read_detections(path: Path, truth: GroundTruth) -> list[ImageDetections]:
    """The detections of a COCO results file, one entry per image of the ground truth."""
    rows: dict[int, list[dict[str, Any]]] = {image.image_id: [] for image in truth.images}
    for row in json.loads(path.read_text(encoding="utf-8")):
        rows[row["image_id"]].append(row)
    return [ImageDetections(image_id, _detections(found), 0.0) for image_id, found in rows.items()]


def _detections(rows: list[dict[str, Any]]) -> Detections:
    boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Detections(
        np.array([row["score"] for row in rows], np.float32),
        np.array([row["category_id"] for row in rows], np.int64),
        boxes,
    )


class Bootstrap:
    """AP on random choices of the validation images, with replacement.

    Every detector is scored on the same choices, so differences are paired.

    Args:
        truth: the whole set.
        repeats: number of choices.
        seed: of the choices.
    """

    def __init__(self, truth: GroundTruth, repeats: int, seed: int = 0) -> None:
        """Draws the choices."""
        rng = np.random.default_rng(seed)
        count = len(truth.images)
        self._truth = truth
        self._choices = rng.integers(count, size=(repeats, count))

    def scores(self, found: Sequence[ImageDetections]) -> list[float]:
        """The AP of one detector on each choice; `found` is in the order of the ground truth."""
        return [self._score(found, choice.tolist()) for choice in self._choices]

    def _score(self, found: Sequence[ImageDetections], choice: list[int]) -> float:
        images = [self._truth.images[index] for index in choice]
        chosen = GroundTruth(
            tuple(replace(image, image_id=number) for number, image in enumerate(images, 1)),
            self._truth.categories,
        )
        detections = [
            replace(found[index], image_id=number) for number, index in enumerate(choice, 1)
        ]
        return evaluate_coco(detections, chosen).ap or 0.0
