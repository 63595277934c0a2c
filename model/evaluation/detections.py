"""Detections of images of a ground truth, and COCO's form of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.detections import Detections


@dataclass(frozen=True)
class ImageDetections:
    """The detections in one image of a `GroundTruth`."""

    image_id: int
    detections: Detections  # labels are category ids of the ground truth
    milliseconds: float  # the resize, and the image's share of its batch


def coco_results(predictions: Sequence[ImageDetections]) -> list[dict[str, Any]]:
    """Detections in COCO's results form: image_id, category_id, bbox (x, y, w, h) and score."""
    return [
        {
            "image_id": entry.image_id,
            "category_id": int(label),
            "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
            "score": float(score),
        }
        for entry in predictions
        for score, label, box in zip(
            entry.detections.scores,
            entry.detections.labels,
            entry.detections.boxes_xyxy.astype(np.float64),
            strict=True,
        )
    ]
