"""The whole detector: backbone -> levels -> encoder -> query selection -> decoder -> detections.

Lite DETR (arXiv 2303.07335) on DINO (arXiv 2203.03605). Attribute names are the official ones,
so official state dicts load strictly; the heads that layers share appear under several names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.backbone import Backbone
from model.network.decoder import DecoderStates
from model.network.levels import Levels, build_levels, input_projections
from model.network.outputs import DenoisingQueries, DetectorOutput, TrainingOutput
from model.network.query_selection import inverse_sigmoid
from model.network.transformer import Transformer, box_head, class_head, gather_rows

__all__ = [
    "DenoisingQueries",
    "DetectorOutput",
    "LiteDETR",
    "TrainingOutput",
    "build_detector",
]

_IMAGE_DIMS = 4


class LiteDETR(nn.Module):
    """The detector.

    Args:
        config: the architecture.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        backbone = Backbone(config)
        self.backbone = nn.ModuleList((backbone,))
        self.input_proj = input_projections(backbone.channels, config)
        self.label_enc = nn.Embedding(config.num_classes + 1, config.d_model)  # denoising only
        boxes, classes = box_head(config.d_model), class_head(config)
        self.bbox_embed = nn.ModuleList(boxes for _ in range(config.decoder_layers))
        self.class_embed = nn.ModuleList(classes for _ in range(config.decoder_layers))
        self.transformer = Transformer(config, self.bbox_embed, self.class_embed)

    def forward(self, images: Tensor, padding_mask: Tensor) -> DetectorOutput:
        """Detects objects.

        Args:
            images: [B, 3, H, W], normalised RGB, zero on padding.
            padding_mask: bool [B, H, W], True on padding (right and bottom).

        Returns:
            The last layer's predictions; queries in the order of their encoder score.

        Raises:
            ValueError: where shapes do not fit one another.
        """
        memory = self.transformer.encode(self._levels(images, padding_mask))
        proposals = self.transformer.propose(memory)
        content = self.transformer.content(proposals)
        states: DecoderStates = self.transformer.decoder(
            content, proposals.reference_logits, memory
        )
        hidden, reference = states.hidden[-1], states.references[-1]
        boxes = (self.bbox_embed[-1](hidden) + inverse_sigmoid(reference)).sigmoid()
        return DetectorOutput(self.class_embed[-1](hidden), boxes, memory.tokens)

    def forward_training(
        self, images: Tensor, padding_mask: Tensor, denoising: DenoisingQueries | None
    ) -> TrainingOutput:
        """As `forward`, with every layer's predictions and the encoder's proposals.

        Raises:
            ValueError: where shapes do not fit one another.
        """
        memory = self.transformer.encode(self._levels(images, padding_mask))
        proposals = self.transformer.propose(memory)
        content = self.transformer.content(proposals)
        reference_logits = proposals.reference_logits.detach()
        mask = None
        if denoising is not None:
            content = torch.cat((denoising.content, content), dim=1)
            reference_logits = torch.cat((denoising.reference_logits, reference_logits), dim=1)
            mask = denoising.attention_mask
        states: DecoderStates = self.transformer.decoder(content, reference_logits, memory, mask)
        per_layer = zip(
            self.bbox_embed, self.class_embed, states.hidden, states.references, strict=True
        )
        boxes, logits = [], []
        for boxes_of, classes_of, hidden, reference in per_layer:
            boxes.append((boxes_of(hidden) + inverse_sigmoid(reference)).sigmoid())
            logits.append(classes_of(hidden))
        dense_deltas = self.transformer.enc_out_bbox_embed(proposals.tokens)
        return TrainingOutput(
            pred_logits=torch.stack(logits),
            pred_boxes=torch.stack(boxes),
            proposal_logits=gather_rows(proposals.logits, proposals.selected),
            proposal_boxes=proposals.reference_logits.sigmoid(),
            dense_logits=proposals.logits,
            dense_boxes=(dense_deltas + inverse_sigmoid(proposals.anchors)).sigmoid(),
            dense_valid=proposals.valid,
            anchors=proposals.anchors,
        )

    def _levels(self, images: Tensor, padding_mask: Tensor) -> Levels:
        if images.dim() != _IMAGE_DIMS or images.shape[1] != 3:  # noqa: PLR2004
            raise ValueError(f"images should be [B, 3, H, W], not {tuple(images.shape)}")
        if padding_mask.shape != images.shape[:1] + images.shape[2:]:
            raise ValueError(
                f"padding_mask {tuple(padding_mask.shape)} does not fit {tuple(images.shape)}"
            )
        maps = self.backbone[0](images)
        return build_levels(maps, self.input_proj, self.transformer.level_embed, padding_mask)


def build_detector(config: ModelConfig) -> LiteDETR:
    """A detector with fresh weights: float32, on the CPU, in training mode."""
    return LiteDETR(config)
