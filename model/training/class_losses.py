"""Elementwise class losses of the terms in `model.training.losses`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_ALPHA = 0.25  # focal: weight of the positives
_GAMMA = 2.0
_NEGATIVE_WEIGHT = 0.75  # quality: weight of the negatives


def focal_loss(logits: Tensor, goal: Tensor) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017), elementwise; `goal` is 0 or 1."""
    probability = logits.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    missed = probability * (1 - goal) + (1 - probability) * goal
    balance = _ALPHA * goal + (1 - _ALPHA) * (1 - goal)
    return balance * missed**_GAMMA * entropy


def quality_loss(logits: Tensor, goal: Tensor, positive: Tensor) -> Tensor:
    """Varifocal-like loss, elementwise: soft goals at positives, focal weights elsewhere.

    Unlike in varifocal loss (Zhang et al. 2021) a positive weighs 1 however poor its box, as in
    matchability-aware loss (DEIM, Huang et al. 2024): poor matches must be supervised too.

    Args:
        logits: any shape.
        goal: target probabilities, same shape; 0 where not `positive`.
        positive: bool, same shape.
    """
    weight = torch.where(positive, 1.0, _NEGATIVE_WEIGHT * logits.detach().sigmoid() ** _GAMMA)
    entropy = functional.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    return weight * entropy
