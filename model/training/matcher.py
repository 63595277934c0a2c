"""Bipartite matching of predictions with targets, all prediction sets in one pass.

DETR (Carion et al. 2020), section 3.1, with the focal class cost of Deformable DETR. It sits
between the network's output and the losses, without gradients.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from model.training.boxes import cxcywh_to_xyxy, iou_and_giou
from model.training.targets import Matches, Targets

CLASS_COST = 2.0
L1_COST = 5.0
GIOU_COST = 2.0
_ALPHA = 0.25
_GAMMA = 2.0


class NonFiniteError(ArithmeticError):
    """A prediction or a loss is NaN or infinite; the message names it."""


@torch.no_grad()
def match(pred_logits: Tensor, pred_boxes: Tensor, targets: Targets) -> Matches:
    """Returns the cheapest one-to-one assignment for each prediction set and image.

    Args:
        pred_logits: [P, B, Q, C] of P prediction sets.
        pred_boxes: [P, B, Q, 4] cxcywh in 0..1.
        targets: of the B images.

    Returns:
        Matches on the predictions' device; min(Q, count) per set and image.

    Raises:
        NonFiniteError: if a logit or a box is not finite.
    """
    for name, tensor in (("pred_logits", pred_logits), ("pred_boxes", pred_boxes)):
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"{name} contains NaN or infinite values; matching is impossible")
    cost = matching_cost(pred_logits, pred_boxes, targets).cpu().numpy()
    counts = targets.present.sum(1).tolist()
    rows = []
    for layer in range(cost.shape[0]):
        for image, count in enumerate(counts):
            query, target = linear_sum_assignment(cost[layer, image, :, :count])
            block = np.empty((4, len(query)), dtype=np.int64)
            block[0], block[1], block[2], block[3] = layer, image, query, target
            rows.append(block)
    columns = np.concatenate(rows, axis=1) if rows else np.zeros((4, 0), dtype=np.int64)
    layer_, image_, query_, target_ = torch.from_numpy(columns).to(pred_logits.device)
    return Matches(layer_, image_, query_, target_)


def matching_cost(pred_logits: Tensor, pred_boxes: Tensor, targets: Targets) -> Tensor:
    """Returns the cost [P, B, Q, T] of each prediction for each target; at least float32."""
    if pred_logits.dtype != torch.float64:
        pred_logits, pred_boxes = pred_logits.float(), pred_boxes.float()
    probability = pred_logits.sigmoid()
    positive = _ALPHA * (1 - probability) ** _GAMMA * functional.softplus(-pred_logits)
    negative = (1 - _ALPHA) * probability**_GAMMA * functional.softplus(pred_logits)
    sets, _, queries, _ = pred_logits.shape
    labels = targets.labels[None, :, None].expand(sets, -1, queries, -1)
    class_cost = (positive - negative).gather(-1, labels)  # [P, B, Q, T]
    wanted = targets.boxes.to(pred_boxes.dtype)[None, :, None]  # [1, B, 1, T, 4]
    found = pred_boxes[:, :, :, None]  # [P, B, Q, 1, 4]
    l1_cost = (found - wanted).abs().sum(-1)
    _, giou = iou_and_giou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted))
    return CLASS_COST * class_cost + L1_COST * l1_cost - GIOU_COST * giou
