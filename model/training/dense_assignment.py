"""Assigns targets to encoder tokens: task-aligned one-to-many assignment.

TOOD (Feng et al. 2021), section 3.3: the alignment of a token with a target is t = score^0.5 *
IoU^4; the best few tokens of each target learn it with normalised soft labels. Unlike in one-to-one
matching, every token is supervised from the first iteration on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.training.boxes import cxcywh_to_xyxy, iou_and_giou
from model.training.targets import Targets

TOP = 9  # tokens per target
_NEAREST = 4  # tokens that are candidates even if no token's centre is in the box
_SCORE_POWER = 0.5
_IOU_POWER = 4.0


@dataclass(frozen=True)
class DenseAssignment:
    """Positives among the tokens of a batch: M of them.

    Attributes:
        image: int64 [M].
        token: int64 [M].
        target: int64 [M], index of the image's target.
        quality: float [M] in 0..1, the soft label.
    """

    image: Tensor
    token: Tensor
    target: Tensor
    quality: Tensor


@torch.no_grad()
def assign_tokens(  # noqa: PLR0913 - the predictions, and a bound by keyword
    logits: Tensor,
    boxes: Tensor,
    anchors: Tensor,
    valid: Tensor,
    targets: Targets,
    *,
    top: int = TOP,
) -> DenseAssignment:
    """Assigns tokens to targets.

    Args:
        logits: [B, S, C].
        boxes: [B, S, 4] cxcywh in 0..1; values at invalid tokens are ignored.
        anchors: [B, S, 4] cxcywh in 0..1.
        valid: bool [B, S].
        targets: of the batch.
        top: tokens per target.
    """
    scores = logits.float().sigmoid().transpose(1, 2)  # [B, C, S]
    tokens, size = logits.shape[1], targets.labels.shape[1]
    score = scores.gather(1, targets.labels[:, :, None].expand(-1, -1, tokens))  # [B, T, S]
    wanted = cxcywh_to_xyxy(targets.boxes)[:, :, None]  # [B, T, 1, 4]
    found = cxcywh_to_xyxy(torch.where(valid[..., None], boxes.float(), 0.0))[:, None]
    iou, _ = iou_and_giou(found, wanted)  # [B, T, S]
    centre = anchors[:, None, :, :2].float()
    inside = ((centre > wanted[..., :2]) & (centre < wanted[..., 2:])).all(-1)
    distance = (centre - targets.boxes[:, :, None, :2]).square().sum(-1)
    distance = distance.masked_fill(~valid[:, None], float("inf"))
    nearest = distance.topk(min(_NEAREST, tokens), dim=-1, largest=False).indices
    candidate = inside.scatter(-1, nearest, True) & valid[:, None] & targets.present[..., None]
    alignment = score**_SCORE_POWER * iou**_IOU_POWER
    ranked = torch.where(candidate, alignment, -1.0)
    best = ranked.topk(min(top, tokens), dim=-1).indices if size else ranked.long()
    chosen = torch.zeros_like(candidate).scatter(-1, best, True) & candidate
    # A token chosen by several targets learns the one that its box fits best.
    owner = torch.where(chosen, iou, -1.0).max(1, keepdim=True).indices if size else best
    chosen &= torch.zeros_like(chosen).scatter(1, owner, True) if size else chosen
    return _soften(chosen, alignment, iou)


def _soften(chosen: Tensor, alignment: Tensor, iou: Tensor) -> DenseAssignment:
    """Scales each target's alignments so that the largest equals its best IoU."""
    if chosen.shape[1] == 0:
        empty = chosen.new_zeros(0, dtype=torch.int64)
        return DenseAssignment(empty, empty, empty, iou.new_zeros(0))
    alignment = torch.where(chosen, alignment, 0.0)
    peak = alignment.amax(-1, keepdim=True).clamp(min=1e-9)
    best_iou = torch.where(chosen, iou, 0.0).amax(-1, keepdim=True)
    image, target, token = chosen.nonzero(as_tuple=True)
    quality = (alignment / peak * best_iou)[image, target, token].clamp(0, 1)
    return DenseAssignment(image, token, target, quality)
