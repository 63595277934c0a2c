"""What an exported file says about itself: enough to use it without this project."""

from __future__ import annotations

import json
from collections.abc import Mapping

from model.predictor import IMAGENET_MEAN, IMAGENET_STD
from model.weights.info import ModelInfo

FORMAT_TAG = "lite-detr-export/1"
INPUTS = ("pixels", "sizes")  # the second one only of padded networks
OUTPUTS = ("logits", "boxes")


def metadata(info: ModelInfo, size: tuple[int, int], *, padded: bool) -> Mapping[str, str]:
    """The metadata of an exported file, as strings; lists and numbers are JSON.

    Args:
        info: of the model.
        size: (H, W) of the images, in pixels.
        padded: whether images may be smaller; see `ExportedNetwork`.
    """
    config = info.config
    values: dict[str, object] = {
        "labels": info.labels,
        "category_ids": info.category_ids,
        "score_threshold": info.score_threshold,
        "max_detections": config.max_detections,
        "duplicate_iou": config.duplicate_iou,
        "height": size[0],
        "width": size[1],
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "shortest_side": config.shortest_side,
        "longest_side": config.longest_side,
    }
    texts = {
        "format": FORMAT_TAG,
        "name": info.name,
        "version": info.version,
        "description": info.description,
        "pixels": "RGB, (value / 255 - mean) / std, bilinear resize"
        + ("; zeros right and below" if padded else ""),
        "logits": "before the sigmoid: one per query and class",
        "boxes": "centre x, centre y, width, height in 0..1 of the image"
        + (" without its padding" if padded else ""),
    }
    return texts | {key: json.dumps(value) for key, value in values.items()}
