"""What training minimises: classification, L1 and GIoU on every prediction the network makes.

Four groups see the same three terms: the decoder's layers and the selected proposals (one-to-one
matching), the denoising queries (assignment known), and all encoder tokens (one-to-many).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from model.network.outputs import TrainingOutput
from model.training.boxes import cxcywh_to_xyxy, iou_and_giou
from model.training.denoising import DenoisingBatch
from model.training.dense_assignment import assign_tokens
from model.training.matcher import match
from model.training.targets import Matches, Targets

Classification = Literal["quality", "focal"]
_ALPHA = 0.25  # focal: weight of the positives
_GAMMA = 2.0
_NEGATIVE_WEIGHT = 0.75  # quality: weight of the negatives
_QUALITY_POWER = 1.5  # a matched query should score IoU^1.5


@dataclass(frozen=True)
class LossWeights:
    """Factors of the terms (first three) and of the groups."""

    classification: float = 1.0
    box_l1: float = 5.0
    giou: float = 2.0
    decoder: float = 1.0  # each decoder layer
    # The proposals share their head with the dense loss: one-to-one targets would call the other
    # eight good tokens of a target background, so their classes weigh little beside it.
    proposal_classes: float = 0.25
    proposal_boxes: float = 1.0
    denoising: float = 1.0  # each decoder layer
    dense: float = 1.0


@dataclass(frozen=True)
class Losses:
    """Scalars of one batch. `total` carries the gradients; the others are for the log."""

    total: Tensor
    classification: Tensor  # last decoder layer, unweighted
    box_l1: Tensor
    giou: Tensor
    decoder: Tensor  # weighted sums of the groups
    proposals: Tensor
    denoising: Tensor
    dense: Tensor

    def values(self) -> dict[str, float]:
        """Plain numbers by name, for the log."""
        names = [field.name for field in fields(self)]
        scalars = torch.stack([getattr(self, name).detach() for name in names])
        return dict(zip(names, scalars.tolist(), strict=True))


@dataclass(frozen=True)
class _Terms:
    """Unweighted sums over boxes, one value a prediction set: each [P]."""

    classification: Tensor
    box_l1: Tensor
    giou: Tensor


def detection_losses(
    output: TrainingOutput,
    targets: Targets,
    denoising: DenoisingBatch | None,
    *,
    weights: LossWeights,
    classification: Classification = "quality",
) -> Losses:
    """All losses of a batch, divided by its number of boxes.

    Args:
        output: of `forward_training`; its first N queries are the denoising ones.
        targets: of the batch.
        denoising: what the first N queries should become; None if there are none.
        weights: of terms and groups.
        classification: "quality" wants IoU-aware scores, "focal" wants 1 at matches.

    Raises:
        NonFiniteError: if predictions are not finite.
    """
    count = denoising.counted.shape[1] if denoising else 0
    boxes = _box_count(targets)
    logits = torch.cat((output.pred_logits[:, :, count:], output.proposal_logits[None])).float()
    found = torch.cat((output.pred_boxes[:, :, count:], output.proposal_boxes[None])).float()
    terms = _set_terms(logits, found, match(logits, found, targets), targets, classification)
    decoder = weights.decoder * _weighted(terms, weights)[:-1].sum() / boxes
    proposals = (
        weights.proposal_classes * weights.classification * terms.classification[-1]
        + weights.proposal_boxes * _weighted_boxes(terms, weights)[-1]
    ) / boxes
    denoised = logits.new_zeros(())
    if denoising:
        terms_dn = _denoising_terms(output, targets, denoising, classification)
        scale = weights.denoising / (boxes * denoising.groups)
        denoised = scale * _weighted(terms_dn, weights).sum()
    dense = logits.new_zeros(())
    if weights.dense > 0:
        dense = weights.dense * _dense_loss(output, targets, weights, boxes)
    return Losses(
        total=decoder + proposals + denoised + dense,
        classification=terms.classification[-2] / boxes,
        box_l1=terms.box_l1[-2] / boxes,
        giou=terms.giou[-2] / boxes,
        decoder=decoder,
        proposals=proposals,
        denoising=denoised,
        dense=dense,
    )


def _box_count(targets: Targets) -> float:
    """Boxes in the batch; not below half a box an image, or few boxes would mean huge steps."""
    return max(float(targets.present.sum()), targets.present.shape[0] / 2)


def _weighted(terms: _Terms, weights: LossWeights) -> Tensor:
    return weights.classification * terms.classification + _weighted_boxes(terms, weights)


def _weighted_boxes(terms: _Terms, weights: LossWeights) -> Tensor:
    return weights.box_l1 * terms.box_l1 + weights.giou * terms.giou


def _denoising_terms(
    output: TrainingOutput,
    targets: Targets,
    denoising: DenoisingBatch,
    classification: Classification,
) -> _Terms:
    """The denoising queries' terms; every decoder layer has the same known assignment."""
    layers, known = output.pred_logits.shape[0], denoising.matches
    matches = Matches(
        torch.arange(layers, device=known.image.device).repeat_interleave(len(known.image)),
        known.image.repeat(layers),
        known.query.repeat(layers),
        known.target.repeat(layers),
    )
    count = denoising.counted.shape[1]
    logits = output.pred_logits[:, :, :count].float()
    found = output.pred_boxes[:, :, :count].float()
    return _set_terms(logits, found, matches, targets, classification, counted=denoising.counted)


def _set_terms(  # noqa: PLR0913 - one call a group, all of its material
    logits: Tensor,
    boxes: Tensor,
    matches: Matches,
    targets: Targets,
    classification: Classification,
    *,
    counted: Tensor | None = None,
) -> _Terms:
    """Terms of prediction sets whose assignment is known.

    Args:
        logits: [P, B, Q, C].
        boxes: [P, B, Q, 4] cxcywh.
        matches: indices into both.
        targets: of the batch.
        classification: the kind of class loss.
        counted: bool [B, Q]; queries with False have no class loss. None = all count.
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
    return _Terms(
        classification=loss.sum((1, 2, 3)),
        box_l1=zeros.index_add(0, matches.layer, (found - wanted).abs().sum(-1)),
        giou=zeros.index_add(0, matches.layer, 1 - giou),
    )


def _dense_loss(
    output: TrainingOutput, targets: Targets, weights: LossWeights, boxes: float
) -> Tensor:
    """One-to-many loss on the valid encoder tokens, a scalar."""
    logits = output.dense_logits.float()
    tokens = assign_tokens(logits, output.dense_boxes, output.anchors, output.dense_valid, targets)
    place = (tokens.image, tokens.token)
    labels = targets.labels[tokens.image, tokens.target]
    positive = torch.zeros_like(logits, dtype=torch.bool)
    positive[(*place, labels)] = True
    goal = torch.zeros_like(logits)
    goal[(*place, labels)] = tokens.quality.to(goal.dtype)
    logits = torch.where(output.dense_valid[..., None], logits, 0.0)
    class_loss = quality_loss(logits, goal, positive) * output.dense_valid[..., None]
    found = output.dense_boxes[place].float()
    wanted = targets.boxes[tokens.image, tokens.target].to(found.dtype)
    _, giou = iou_and_giou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted))
    box_loss = weights.box_l1 * (found - wanted).abs().sum(-1) + weights.giou * (1 - giou)
    # TOOD divides by the soft labels' sum; the bound keeps the first, hopeless labels calm.
    share = max(float(tokens.quality.sum()), boxes)
    total = weights.classification * class_loss.sum() + (tokens.quality * box_loss).sum()
    return total / share


def focal_loss(logits: Tensor, goal: Tensor) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017), elementwise; `goal` is 0 or 1."""
    probability = logits.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    missed = probability * (1 - goal) + (1 - probability) * goal
    balance = _ALPHA * goal + (1 - _ALPHA) * (1 - goal)
    return balance * missed**_GAMMA * entropy


def quality_loss(logits: Tensor, goal: Tensor, positive: Tensor) -> Tensor:
    """Varifocal-like loss, elementwise: soft goals at positives, focal weights elsewhere.

    Unlike varifocal (Zhang et al. 2021) a positive weighs 1 however poor its box, as matchability-
    aware loss has it (DEIM, Huang et al. 2024): poor matches must not be left unsupervised.

    Args:
        logits: any shape.
        goal: wanted probabilities, same shape; 0 where not `positive`.
        positive: bool, same shape.
    """
    weight = torch.where(positive, 1.0, _NEGATIVE_WEIGHT * logits.detach().sigmoid() ** _GAMMA)
    entropy = functional.binary_cross_entropy_with_logits(logits, goal, reduction="none")
    return weight * entropy
