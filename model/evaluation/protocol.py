"""What an evaluation measures: its rules in words, and the published AP to compare with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

from model.config import VARIANTS, ModelConfig
from model.data.annotations import GroundTruth
from model.labels import COCO_LABELS
from model.published import PUBLISHED_AP

VAL2017_IMAGES: Final = 5000
# SHA-256 of the ids of COCO val2017, in ascending order, with a space between two.
_VAL2017_IDS: Final = "3df2914698b3b9216e0e7107af9d0a2aadf367e5bf2f0b139789e9c646258621"


def describe_protocol(config: ModelConfig) -> str:
    """Describes the input size, which detections are scored, and whether duplicates are removed."""
    duplicates = (
        "no duplicate removal (the model file has duplicate_iou 1)"
        if config.duplicate_iou >= 1
        else f"of boxes that overlap by an IoU above {config.duplicate_iou:g} only the best (the "
        f"model file has duplicate_iou {config.duplicate_iou:g})"
    )
    return (
        f"shortest side {config.shortest_side}, longest at most {config.longest_side} pixels; no "
        f"score threshold; the {config.max_detections} best detections of an image, of which COCO "
        f"scores at most 100 of a class; {duplicates}"
    )


def published_ap(config: ModelConfig, labels: Sequence[str]) -> float | None:
    """Returns the published COCO AP, in percent, of the row that a model is an instance of.

    None for a model of another architecture or of other classes, and for rows that the paper does
    not list.
    """
    is_row = config == VARIANTS.get(config.name) and tuple(labels) == COCO_LABELS
    return PUBLISHED_AP.get(config.name) if is_row else None


def is_val2017(truth: GroundTruth) -> bool:
    """Whether these are all images of COCO val2017, on which the AP of models is published."""
    if len(truth.images) != VAL2017_IMAGES:
        return False
    return _digest(image.image_id for image in truth.images) == _VAL2017_IDS


def _digest(image_ids: Iterable[int]) -> str:
    return hashlib.sha256(" ".join(map(str, sorted(image_ids))).encode()).hexdigest()
