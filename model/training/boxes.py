"""Box arithmetic on tensors, for costs and losses (in numpy, for serving: model/geometry.py)."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-9  # an area below any real box in 0..1 coordinates; keeps divisions finite


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] centre and size -> [..., 4] corners, same unit."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] corners -> [..., 4] centre and size, same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def iou_and_giou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019) of boxes that broadcast.

    Args:
        first: [..., 4] xyxy.
        second: [..., 4] xyxy; pairwise values come from `first[:, None]` and `second[None]`.

    Returns:
        Two tensors of the broadcast shape without the last axis.
    """
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    union = _area(first) + _area(second) - overlap
    iou = overlap / union.clamp(min=_TINY)
    hull_low = torch.minimum(first[..., :2], second[..., :2])
    hull_high = torch.maximum(first[..., 2:], second[..., 2:])
    hull = (hull_high - hull_low).clamp(min=0).prod(-1)
    return iou, iou - (hull - union) / hull.clamp(min=_TINY)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
