"""The detector's outputs, for inference and for the losses, and its denoising queries."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DetectorOutput:
    """The output of `LiteDETR.forward`.

    Attributes:
        pred_logits: [B, Q, C], before the sigmoid.
        pred_boxes: [B, Q, 4], cxcywh in 0..1 of the unpadded image.
        memory: [B, S, d], the encoder's output; for S see `model.network.inference`.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    memory: Tensor


@dataclass(frozen=True)
class DenoisingQueries:
    """Noised ground truth, put before the selected queries in training.

    Attributes:
        content: [B, N, d].
        reference_logits: [B, N, 4], noised boxes before the sigmoid.
        attention_mask: bool [N + Q, N + Q], True where a query may not see another.
    """

    content: Tensor
    reference_logits: Tensor
    attention_mask: Tensor


@dataclass(frozen=True)
class TrainingOutput:
    """The input of the losses; N denoising queries come before the Q selected ones.

    Attributes:
        pred_logits: [layers, B, N + Q, C]; the last `one_to_many` are that branch's.
        pred_boxes: [layers, B, N + Q, 4], cxcywh 0..1.
        proposal_logits: [B, Q, C] of the selected encoder tokens.
        proposal_boxes: [B, Q, 4] of the selected encoder tokens.
        dense_logits: [B, S, C] of all encoder tokens.
        dense_boxes: [B, S, 4] of all encoder tokens; meaningless where not `dense_valid`.
        dense_valid: bool [B, S], tokens that may propose a box.
        anchors: [B, S, 4], the proposals that `dense_boxes` refine.
        one_to_many: queries of H-DETR's one-to-many branch.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    proposal_logits: Tensor
    proposal_boxes: Tensor
    dense_logits: Tensor
    dense_boxes: Tensor
    dense_valid: Tensor
    anchors: Tensor
    one_to_many: int = 0
