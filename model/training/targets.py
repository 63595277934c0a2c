"""The targets of one batch, padded so that costs and losses need no loops."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """Boxes and labels of B images; T is the largest count (0 is allowed).

    Attributes:
        labels: int64 [B, T]; 0 on padding.
        boxes: float32 [B, T, 4] cxcywh in 0..1 of the unpadded image.
        present: bool [B, T]; False on padding.
    """

    labels: Tensor
    boxes: Tensor
    present: Tensor

    def repeated(self, times: int) -> Targets:
        """Each target several times; the padding stays last."""
        labels, boxes, present = (
            part.repeat_interleave(times, dim=1) for part in (self.labels, self.boxes, self.present)
        )
        return Targets(labels, boxes, present)

    def of_any_object(self) -> Targets:
        """The targets with the first class instead of their own."""
        return Targets(torch.zeros_like(self.labels), self.boxes, self.present)

    def to(self, device: torch.device) -> Targets:
        """Copies the targets to a device."""
        return Targets(self.labels.to(device), self.boxes.to(device), self.present.to(device))


def pad_targets(labels: list[Tensor], boxes: list[Tensor]) -> Targets:
    """Pads the targets of images with different counts.

    Args:
        labels: one int64 [n] per image.
        boxes: one float32 [n, 4] per image, cxcywh in 0..1.
    """
    size = max((len(one) for one in labels), default=0)
    shape = (len(labels), size)
    padded = Targets(
        torch.zeros(shape, dtype=torch.int64),
        torch.zeros((*shape, 4), dtype=boxes[0].dtype if boxes else torch.float32),
        torch.zeros(shape, dtype=torch.bool),
    )
    for row, (image_labels, image_boxes) in enumerate(zip(labels, boxes, strict=True)):
        count = len(image_labels)
        padded.labels[row, :count] = image_labels
        padded.boxes[row, :count] = image_boxes
        padded.present[row, :count] = True
    return padded


@dataclass(frozen=True)
class Matches:
    """Assignments of predictions to targets: four int64 [M] columns.

    Attributes:
        layer: index of the prediction set (decoder layer, proposals).
        image: index in the batch.
        query: index of the prediction.
        target: index of the image's target.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor
