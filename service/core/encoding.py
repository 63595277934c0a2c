"""What output formats and protocols encode: results of files, rounded numbers and label names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.detections import Detections
from model.text import valid_text
from service.types import DetectResult

_SCORE_DECIMALS = 4
BOX_DECIMALS = 2  # of a pixel


@dataclass(frozen=True)
class ItemError:
    """Why one file of several has no result."""

    code: str  # stable, for programs
    title: str  # of the kind of error, for people
    detail: str  # of this error, for people
    status: int | None = None  # HTTP status if the file had been sent by itself; None offline
    retry_after_s: int | None = None  # after which a retry is useful

    def __post_init__(self) -> None:
        """Makes the detail encodable; it may have the name of a file."""
        object.__setattr__(self, "detail", valid_text(self.detail))


@dataclass(frozen=True)
class FileResult:
    """The result or the error of one file: exactly one of them is set."""

    name: str | None  # the client's file name
    result: DetectResult | None = None
    error: ItemError | None = None

    def __post_init__(self) -> None:
        """Makes the name encodable."""
        if self.name is not None:
            object.__setattr__(self, "name", valid_text(self.name))


def rounded_columns(
    detections: Detections,
) -> tuple[list[float], list[int], list[list[float]]]:
    """Scores, class ids and boxes; rounded as float64, so that their decimal form is short."""
    scores = detections.scores.astype(np.float64).round(_SCORE_DECIMALS).tolist()
    boxes = detections.boxes_xyxy.astype(np.float64).round(BOX_DECIMALS).tolist()
    return scores, detections.labels.tolist(), boxes


def label_name(label_names: Sequence[str], class_id: int) -> str:
    """Returns the name of a class, or its number if the model has no name for it."""
    return label_names[class_id] if 0 <= class_id < len(label_names) else str(class_id)
