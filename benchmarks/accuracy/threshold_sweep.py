"""Chooses a working threshold by recall, precision and alarms of each threshold on a set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.data.annotations import GroundTruth
from model.evaluation.evaluate import ImageDetections
from model.evaluation.photo_rules import judge_photos

_STEPS = range(10, 91, 2)  # hundredths


@dataclass(frozen=True)
class ThresholdPoint:
    """The scores of one threshold on a set; recall, precision and alarmed are shares, 0..1."""

    threshold: float
    recall: float  # of the codes
    precision: float  # of the detections
    alarmed: float  # code-free images with a detection

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def sweep(predictions: Sequence[ImageDetections], truth: GroundTruth) -> list[ThresholdPoint]:
    """Scores the same detections at thresholds from 0.10 to 0.90."""
    points = []
    for step in _STEPS:
        scores = judge_photos(predictions, truth, step / 100)
        hits = sum(part.hits for part in scores.per_class)
        codes = sum(part.codes for part in scores.per_class)
        reported = hits + scores.surplus + scores.false_alarms
        points.append(
            ThresholdPoint(
                step / 100,
                recall=hits / max(codes, 1),
                precision=hits / reported if reported else 1.0,
                alarmed=scores.alarmed_photos / max(scores.code_free_photos, 1),
            )
        )
    return points


def choose_threshold(points: Sequence[ThresholdPoint], max_alarms: float) -> float:
    """The threshold with the best F1 among those with few enough alarms.

    Args:
        points: at least one, by rising threshold.
        max_alarms: largest share of code-free images with a detection.

    Returns:
        The threshold; the highest one if all have more alarms.
    """
    allowed = [point for point in points if point.alarmed <= max_alarms]
    return max(allowed, key=lambda point: point.f1).threshold if allowed else points[-1].threshold


def format_sweep(points: Sequence[ThresholdPoint]) -> str:
    """The points as a Markdown table."""
    rows = ["| threshold | recall | precision | F1 | alarmed |", "|---:|---:|---:|---:|---:|"]
    rows += [
        f"| {p.threshold:.2f} | {p.recall:.3f} | {p.precision:.3f} | {p.f1:.3f} | {p.alarmed:.3f} |"
        for p in points
    ]
    return "\n".join(rows)
