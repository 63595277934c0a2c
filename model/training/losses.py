"""The training losses: classification, L1 and GIoU on every prediction of the network.

Each term of `model.training.loss_terms.LOSS_TERMS` is a function here. All apply the same three
parts to their own predictions: the decoder's layers and the selected proposals (one-to-one
matching), the denoising queries (assignment known), all encoder tokens (one-to-many), and H-DETR's
one-to-many branch (one-to-one matching with repeated targets).

Encoder tokens of Deformable DETR and H-DETR say whether there is any object. As in their official
code, all of them are matched one-to-one, and there is no dense term.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.network.outputs import TrainingOutput
from model.training.boxes import cxcywh_to_xyxy, iou_and_giou
from model.training.class_losses import focal_loss, quality_loss
from model.training.denoising import DenoisingBatch
from model.training.dense_assignment import TOP, assign_tokens
from model.training.duplicates import duplicate_loss
from model.training.loss_terms import LOSS_TERMS
from model.training.matcher import match
from model.training.set_losses import (
    BOX_L1_WEIGHT,
    CLASSIFICATION_WEIGHT,
    GIOU_WEIGHT,
    Classification,
    SetLosses,
    matched_losses,
    set_losses,
    token_losses,
)
from model.training.targets import Matches, Targets

__all__ = [
    "Classification",
    "LossInputs",
    "Losses",
    "detection_losses",
    "duplicate_loss",
    "focal_loss",
    "quality_loss",
]

Mean = Callable[[float], float]
# The proposals share their head with the dense loss. One-to-one targets would call the other
# eight good tokens of a target background, so their classification weighs little.
_PROPOSAL_CLASSIFICATION_WEIGHT = 0.25
_REPEATS = 6  # of each target for the one-to-many branch, as in H-DETR


@dataclass(frozen=True)
class LossInputs:
    """What a loss term is computed from.

    Attributes:
        output: of `forward_training`; its first N queries are the denoising ones.
        targets: of the batch.
        denoising: expected results of the first N queries; None if there are none.
        classification: "quality" for IoU-aware scores, "focal" for a score of 1 at matches.
        num_boxes: the divisor of a sum over boxes.
        matched: losses of the decoder's layers and, last, of the proposals.
        matches: of the decoder's layers with the targets; of the proposals, too, unless
            any_object.
        any_object: the encoder's tokens are scored by whether there is any object.
        mean: of a number over the processes of the run.
    """

    output: TrainingOutput
    targets: Targets
    denoising: DenoisingBatch | None
    classification: Classification
    num_boxes: float
    matched: SetLosses
    matches: Matches
    any_object: bool = False
    mean: Mean = float
    dense_tokens: int = TOP


@dataclass(frozen=True)
class Losses:
    """Scalars of one batch.

    Attributes:
        total: sum of the terms, with gradients.
        terms: weighted, by name in `LOSS_TERMS`.
        last_layer: unweighted parts of the last decoder layer, for the log.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    last_layer: Mapping[str, Tensor]

    def values(self) -> dict[str, float]:
        """Plain numbers by name, for the log."""
        tensors = {"total": self.total, **self.last_layer, **self.terms}
        scalars = torch.stack([tensor.detach() for tensor in tensors.values()])
        return dict(zip(tensors, scalars.tolist(), strict=True))


def detection_losses(  # noqa: PLR0913 - options, by keyword
    output: TrainingOutput,
    targets: Targets,
    denoising: DenoisingBatch | None,
    *,
    weights: Mapping[str, float],
    classification: Classification = "quality",
    any_object: bool = False,
    mean: Mean = float,
    dense_tokens: int = TOP,
) -> Losses:
    """Computes all terms of `LOSS_TERMS` whose weight is not 0.

    Args:
        output: of `forward_training`; its first N queries are the denoising ones.
        targets: of the batch.
        denoising: expected results of the first N queries; None if there are none.
        weights: by name of the term.
        classification: "quality" for IoU-aware scores, "focal" for a score of 1 at matches.
        any_object: the first class of encoder tokens means any object.
        mean: of a number over the processes of the run, for the divisors of sums over boxes.
        dense_tokens: encoder tokens that learn each object in the dense term.

    Raises:
        NonFiniteError: if predictions are not finite.
    """
    inputs = _loss_inputs(
        output,
        targets,
        denoising,
        classification=classification,
        any_object=any_object,
        mean=mean,
        dense_tokens=dense_tokens,
    )
    zero = inputs.matched.giou.new_zeros(())
    terms = {
        name: weights[name] * _function(term.function)(inputs) if weights[name] > 0 else zero
        for name, term in LOSS_TERMS.items()
    }
    parts = vars(inputs.matched).items()
    return Losses(
        total=sum(terms.values(), start=zero),
        terms=terms,
        last_layer={name: part[-2] / inputs.num_boxes for name, part in parts},
    )


def _function(name: str) -> Callable[[LossInputs], Tensor]:
    function: Callable[[LossInputs], Tensor] = globals()[name]
    return function


def _loss_inputs(  # noqa: PLR0913 - as detection_losses
    output: TrainingOutput,
    targets: Targets,
    denoising: DenoisingBatch | None,
    *,
    classification: Classification,
    any_object: bool,
    mean: Mean,
    dense_tokens: int,
) -> LossInputs:
    count = denoising.counted.shape[1] if denoising else 0
    end = output.pred_logits.shape[2] - output.one_to_many
    logits, boxes = output.pred_logits[:, :, count:end], output.pred_boxes[:, :, count:end]
    if any_object:
        matches = match(logits.float(), boxes.float(), targets)
        decoder = set_losses(logits.float(), boxes.float(), matches, targets, classification)
        tokens = token_losses(output, targets, classification)
        pairs = zip(vars(decoder).values(), vars(tokens).values(), strict=True)
        matched = SetLosses(*(torch.cat(pair) for pair in pairs))
    else:
        logits = torch.cat((logits, output.proposal_logits[None, :, : end - count])).float()
        boxes = torch.cat((boxes, output.proposal_boxes[None, :, : end - count])).float()
        matches = match(logits, boxes, targets)
        matched = set_losses(logits, boxes, matches, targets, classification)
    # Not below half a box per image, or few boxes would mean huge steps.
    num_boxes = mean(max(float(targets.present.sum()), targets.present.shape[0] / 2))
    return LossInputs(
        output,
        targets,
        denoising,
        classification,
        num_boxes,
        matched,
        matches,
        any_object,
        mean,
        dense_tokens,
    )


def decoder_loss(inputs: LossInputs) -> Tensor:
    """One-to-one loss, summed over the decoder's layers."""
    return inputs.matched.weighted[:-1].sum() / inputs.num_boxes


def proposal_loss(inputs: LossInputs) -> Tensor:
    """One-to-one loss of the selected proposals, or of all tokens; see the module."""
    matched = inputs.matched
    if inputs.any_object:
        return matched.weighted[-1] / inputs.num_boxes
    factor = _PROPOSAL_CLASSIFICATION_WEIGHT * CLASSIFICATION_WEIGHT
    return (factor * matched.classification[-1] + matched.boxes[-1]) / inputs.num_boxes


def one_to_many_loss(inputs: LossInputs) -> Tensor:
    """Loss of H-DETR's second branch in every decoder layer: each target has several queries."""
    output, count = inputs.output, inputs.output.one_to_many
    if count == 0:
        return inputs.matched.giou.new_zeros(())
    logits, boxes = output.pred_logits[:, :, -count:], output.pred_boxes[:, :, -count:]
    targets = inputs.targets.repeated(_REPEATS)
    losses = matched_losses(logits, boxes, targets, inputs.classification)
    return losses.weighted.sum() / (inputs.num_boxes * _REPEATS)


def denoising_loss(inputs: LossInputs) -> Tensor:
    """Loss of the denoising queries; every decoder layer has the same known assignment."""
    if inputs.denoising is None:
        return inputs.matched.giou.new_zeros(())
    output, denoising = inputs.output, inputs.denoising
    layers, known = output.pred_logits.shape[0], denoising.matches
    matches = Matches(
        torch.arange(layers, device=known.image.device).repeat_interleave(len(known.image)),
        known.image.repeat(layers),
        known.query.repeat(layers),
        known.target.repeat(layers),
    )
    count = denoising.counted.shape[1]
    losses = set_losses(
        output.pred_logits[:, :, :count].float(),
        output.pred_boxes[:, :, :count].float(),
        matches,
        inputs.targets,
        inputs.classification,
        counted=denoising.counted,
    )
    return losses.weighted.sum() / (inputs.num_boxes * denoising.groups)


def dense_loss(inputs: LossInputs) -> Tensor:
    """One-to-many loss of the valid encoder tokens; none where they score any object."""
    output, targets = inputs.output, inputs.targets
    if inputs.any_object:
        return inputs.matched.giou.new_zeros(())
    logits = output.dense_logits.float()
    tokens = assign_tokens(
        logits,
        output.dense_boxes,
        output.anchors,
        output.dense_valid,
        targets,
        top=inputs.dense_tokens,
    )
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
    box_loss = BOX_L1_WEIGHT * (found - wanted).abs().sum(-1) + GIOU_WEIGHT * (1 - giou)
    # TOOD divides by the sum of the soft labels, which starts near 0: hence the bound.
    divisor = max(inputs.mean(float(tokens.quality.sum())), inputs.num_boxes)
    total = CLASSIFICATION_WEIGHT * class_loss.sum() + (tokens.quality * box_loss).sum()
    return total / divisor
