"""The model card in a weights file: what it was trained on, how, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.training.options import TrainOptions
from model.training.sources import ImageSource
from model.training.state import Position
from model.training.validation import Validation

_SHOWN_OPTIONS = (
    "variant",
    "batch_size",
    "accumulate",
    "learning_rate",
    "sizes",
    "symmetries",
    "freeze_backbone_stages",
    "seed",
)


def model_card(
    options: TrainOptions,
    source: ImageSource,
    place: Position,
    validation: Validation | None,
    images_per_step: int,
) -> dict[str, Any]:
    """Returns the card as plain JSON values, without paths of the machine.

    Args:
        options: of the run.
        source: the training images.
        place: of the run when the weights were averaged.
        validation: of the weights; None: they were not validated.
        images_per_step: of all processes.
    """
    values = options.to_dict()
    data = options.data or options.annotations or options.cache
    start = options.init_from or options.pretrained_backbone
    card: dict[str, Any] = {
        "training": {
            "data": data.name if data is not None else "generated images",
            "images": len(source),
            "iterations": place.iteration,
            "images_per_iteration": images_per_step,
            "started_from": None if start is None else Path(start).name,
            "options": {name: values[name] for name in _SHOWN_OPTIONS},
        }
    }
    if validation is not None:
        card["validation"] = _scores(validation)
    return card


def _scores(validation: Validation) -> Mapping[str, Any]:
    scores = validation.scores
    return {
        "images": scores.num_images,
        "boxes": scores.num_boxes,
        "ap": _rounded(scores.ap),
        "ap50": _rounded(scores.ap50),
        "classes": {
            row.name: {"boxes": row.num_boxes, "ap": _rounded(row.ap), "ap50": _rounded(row.ap50)}
            for row in scores.per_class
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
