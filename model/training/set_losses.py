"""Losses of sets of predictions that are matched with targets: classification, L1 and GIoU.

A set is a decoder layer's queries, the selected proposals, or all encoder tokens.
`model.training.losses` makes the terms of the training loss from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from model.network.outputs import TrainingOutput
from model.training.boxes import cxcywh_to_xyxy, iou_and_giou
from model.training.class_losses import focal_loss, quality_loss
from model.training.matcher import match
from model.training.targets import Matches, Targets

Classification = Literal["quality", "focal"]
CLASSIFICATION_WEIGHT, BOX_L1_WEIGHT, GIOU_WEIGHT = 1.0, 5.0, 2.0
_UNLIKELY = -20.0  # logit of tokens that may not propose a box
_QUALITY_POWER = 1.5  # a matched query should score IoU^1.5


@dataclass(frozen=True)
class SetLosses:
    """Losses of P prediction sets, summed over boxes and unweighted: each [P]."""

    classification: Tensor
    box_l1: Tensor
    giou: Tensor

    @property
    def boxes(self) -> Tensor:
        """L1 and GIoU with their weights, [P]."""
        return BOX_L1_WEIGHT * self.box_l1 + GIOU_WEIGHT * self.giou

    @property
    def weighted(self) -> Tensor:
        """All three with their weights, [P]."""
        return CLASSIFICATION_WEIGHT * self.classification + self.boxes


def matched_losses(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    classification: Classification,
    counted: Tensor | None = None,
) -> SetLosses:
    """Losses of prediction sets after one-to-one matching; for the arguments see `set_losses`."""
    logits, boxes = logits.float(), boxes.float()
    matches = match(logits, boxes, targets)
    return set_losses(logits, boxes, matches, targets, classification, counted=counted)


def token_losses(
    output: TrainingOutput, targets: Targets, classification: Classification
) -> SetLosses:
    """Losses of all encoder tokens, matched one-to-one with objects of any class: one set."""
    valid = output.dense_valid
    logits = torch.where(valid[..., None], output.dense_logits, _UNLIKELY)
    boxes = torch.where(valid[..., None], output.dense_boxes, 0.0)
    wanted = targets.of_any_object()
    return matched_losses(logits[None], boxes[None], wanted, classification, counted=valid)


def set_losses(  # noqa: PLR0913 - predictions, targets and their assignment
    logits: Tensor,
    boxes: Tensor,
    matches: Matches,
    targets: Targets,
    classification: Classification,
    *,
    counted: Tensor | None = None,
) -> SetLosses:
    """Losses of prediction sets whose assignment is known.

    Args:
        logits: [P, B, Q, C].
        boxes: [P, B, Q, 4] cxcywh.
        matches: indices into both.
        targets: of the batch.
        classification: the kind of class loss.
        counted: bool [B, Q]; queries with False have no class loss. None: all have.
    """
    sets, place = logits.shape[0], (matches.layer, matches.image, matches.query)
    found, wanted = boxes[place], targets.boxes[matches.image, matches.target].to(boxes.dtype)
    iou, giou = iou_and_giou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted))
    labels = targets.labels[matches.image, matches.target]
    positive = torch.zeros_like(logits, dtype=torch.bool)
    positive[(*place, labels)] = True
    if classification == "quality":
        goal = torch.zeros_like(logits)
        goal[(*place, labels)] = iou.detach().clamp(0, 1) ** _QUALITY_POWER
        loss = quality_loss(logits, goal, positive)
    else:
        loss = focal_loss(logits, positive.to(logits.dtype))
    if counted is not None:
        loss = loss * counted[None, :, :, None]
    zeros = logits.new_zeros(sets)
    return SetLosses(
        classification=loss.sum((1, 2, 3)),
        box_l1=zeros.index_add(0, matches.layer, (found - wanted).abs().sum(-1)),
        giou=zeros.index_add(0, matches.layer, 1 - giou),
    )
