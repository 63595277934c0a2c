"""Detections -> predictions in Label Studio's form."""

from __future__ import annotations

from typing import Any

from service.core.encoding import label_name, rounded_columns
from service.label_studio.label_config import Rectangles
from service.types import DetectResult

_PERCENT_DECIMALS = 4
_SCORE_DECIMALS = 4


def prediction_of(result: DetectResult, rectangles: Rectangles) -> dict[str, Any]:
    """Returns the prediction of one task; its score is the mean of those of its rectangles."""
    rows = [
        (label, score, box)
        for score, class_id, box in zip(*rounded_columns(result.detections), strict=True)
        if (label := rectangles.labels.get(label_name(result.label_names, class_id))) is not None
    ]
    entries = [
        {
            "id": f"{result.request_id[-32:]}-{number}",
            "from_name": rectangles.from_name,
            "to_name": rectangles.to_name,
            "type": "rectanglelabels",
            "original_width": result.width,
            "original_height": result.height,
            "image_rotation": 0,
            "value": _value(box, result.width, result.height) | {"rectanglelabels": [label]},
            "score": score,
        }
        for number, (label, score, box) in enumerate(rows, start=1)
    ]
    mean = sum(score for _, score, _ in rows) / len(rows) if rows else 0.0
    return {
        "result": entries,
        "score": round(mean, _SCORE_DECIMALS),
        "model_version": version_of(result.model_name, result.model_version),
    }


def version_of(name: str, version: str) -> str:
    """The model version that Label Studio shows."""
    return f"{name}-{version}"


def _value(box: list[float], width: int, height: int) -> dict[str, float]:
    """A rectangle in percent of the image's sides."""
    left, right = (_percent(box[0], width), _percent(box[2], width))
    top, bottom = (_percent(box[1], height), _percent(box[3], height))
    return {
        "x": left,
        "y": top,
        "width": round(right - left, _PERCENT_DECIMALS),
        "height": round(bottom - top, _PERCENT_DECIMALS),
        "rotation": 0,
    }


def _percent(value: float, side: int) -> float:
    return round(min(100.0, max(0.0, 100 * value / side)), _PERCENT_DECIMALS)
