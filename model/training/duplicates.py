"""The loss of second detections of an object, a term of `model.training.loss_terms`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from model.training.boxes import cxcywh_to_xyxy, iou_and_giou

if TYPE_CHECKING:
    from model.training.losses import LossInputs

_COVERED = 0.5  # IoU from which a second detection of an object is a duplicate


def duplicate_loss(inputs: LossInputs) -> Tensor:
    """Loss of second detections of an object, in every decoder layer.

    A query whose box covers a target (IoU of 0.5 or more) should score 0 for all classes, except
    the matched query for the target's class. `quality_loss` alone weighs such a score p by p^2:
    where two queries fit a target equally well and each is matched half of the time, its
    gradient vanishes at p = 0.72 of both. With a full weight it vanishes at 0.5 or less, and the
    difference between the two grows.
    """
    output, targets = inputs.output, inputs.targets
    count = inputs.denoising.counted.shape[1] if inputs.denoising else 0
    end = output.pred_logits.shape[2] - output.one_to_many
    if targets.labels.shape[1] == 0:
        return inputs.matched.giou.new_zeros(())
    logits = output.pred_logits[:, :, count:end].float()  # [P, B, Q, C]
    with torch.no_grad():
        found = cxcywh_to_xyxy(output.pred_boxes[:, :, count:end].float())[:, :, :, None]
        iou, _ = iou_and_giou(found, cxcywh_to_xyxy(targets.boxes.float())[None, :, None])
        overlap = torch.where(targets.present[None, :, None], iou, 0.0).amax(-1)  # [P, B, Q]
        weight = (overlap * (overlap >= _COVERED))[..., None].expand(logits.shape).clone()
        layers = inputs.matches.layer < len(logits)  # without the proposals
        place = tuple(
            index[layers]
            for index in (inputs.matches.layer, inputs.matches.image, inputs.matches.query)
        )
        labels = targets.labels[inputs.matches.image, inputs.matches.target][layers]
        weight[(*place, labels)] = 0.0
    return (weight * functional.softplus(logits)).sum() / inputs.num_boxes
