"""Chooses a working threshold: what each one finds, misses and wrongly reports on a set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.data.annotations import GroundTruth
from model.evaluation.evaluate import PhotoDetections
from model.evaluation.photo_rules import judge_photos

_STEPS = range(10, 91, 2)  # hundredths


@dataclass(frozen=True)
class ThresholdPoint:
    """What a set says about one threshold; all but the threshold itself are shares, 0..1."""

    threshold: float
    recall: float  # of the codes
    precision: float  # of the detections
    alarmed: float  # code-free photos with a detection

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def sweep(predictions: Sequence[PhotoDetections], truth: GroundTruth) -> list[ThresholdPoint]:
    """Judges the same detections at thresholds from 0.10 to 0.90."""
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


def choose_threshold(points: Sequence[ThresholdPoint], most_alarms: float) -> float:
    """The threshold of the best F1 among those that alarm few enough code-free photos.

    Args:
        points: at least one, thresholds rising.
        most_alarms: the share of code-free photos that may have a detection.

    Returns:
        The threshold; the highest where each alarms too many.
    """
    quiet = [point for point in points if point.alarmed <= most_alarms]
    return max(quiet, key=lambda point: point.f1).threshold if quiet else points[-1].threshold


def format_sweep(points: Sequence[ThresholdPoint]) -> str:
    """The points as a Markdown table."""
    rows = ["| threshold | recall | precision | F1 | alarmed |", "|---:|---:|---:|---:|---:|"]
    rows += [
        f"| {p.threshold:.2f} | {p.recall:.3f} | {p.precision:.3f} | {p.f1:.3f} | {p.alarmed:.3f} |"
        for p in points
    ]
    return "\n".join(rows)
