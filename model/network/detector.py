"""The whole detector: backbone -> levels -> encoder -> query selection -> decoder -> detections.

Lite DETR (arXiv 2303.07335), based on DINO (arXiv 2203.03605). Attribute names are the official
ones, so official state dicts load strictly; heads shared by layers appear under several names.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.backbone.base import Backbone, DetectorBackbone, build_backbone
from model.network.decoder import Decoder
from model.network.geometry import Geometry
from model.network.levels import input_projections, project_levels, tokens_of
from model.network.outputs import DenoisingQueries, DetectorOutput, TrainingOutput
from model.network.transformer import Proposals, Transformer, box_head, class_head, gather_rows

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

    float32_layers = ("bbox_embed", "class_embed")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        body = build_backbone(config.backbone)
        self.backbone = nn.ModuleList((DetectorBackbone(body) if config.backbone_in_body else body,))
        self.input_proj = input_projections(body.channels, config)
        self.label_enc = nn.Embedding(config.num_classes + 1, config.d_model)  # only for denoising
        boxes, classes = box_head(config.d_model), class_head(config)
        self.bbox_embed = nn.ModuleList(boxes for _ in range(config.decoder_layers))
        self.class_embed = nn.ModuleList(classes for _ in range(config.decoder_layers))
        self.transformer = Transformer(config, self.bbox_embed, self.class_embed)

    @property
    def body(self) -> Backbone:
        """The network that makes the feature maps."""
        held = self.backbone[0]
        return cast(Backbone, held.body if isinstance(held, DetectorBackbone) else held)

    def forward(self, images: Tensor, padding_mask: Tensor) -> DetectorOutput:
        """Detects objects.

        Args:
            images: [B, 3, H, W], normalised RGB, zero on padding.
            padding_mask: bool [B, H, W], True on padding (right and bottom).

        Returns:
            The last layer's predictions; queries in the order of their encoder score.

        Raises:
            ValueError: for images and masks whose shapes contradict each other.
        """
        memory, geometry = self.encode(images, padding_mask)
        decoder, proposals = self.transformer.decoder, self.transformer.propose(memory, geometry)
        states = decoder(
            self.transformer.content(proposals), proposals.reference_logits, memory, geometry
        )
        hidden = decoder.norm(states.hidden[-1])
        boxes = Decoder.refine(self.bbox_embed[-1], hidden, states.references[-1])
        return DetectorOutput(self.class_embed[-1](hidden), boxes, memory)

    def forward_training(
        self, images: Tensor, padding_mask: Tensor, denoising: DenoisingQueries | None
    ) -> TrainingOutput:
        """As `forward`, with every layer's predictions and the encoder's proposals.

        Raises:
            ValueError: for images and masks whose shapes contradict each other.
        """
        memory, geometry = self.encode(images, padding_mask)
        decoder, proposals = self.transformer.decoder, self.transformer.propose(memory, geometry)
        content = self.transformer.content(proposals)
        reference_logits = proposals.reference_logits.detach()
        mask = None
        if denoising is not None:
            content = torch.cat((denoising.content, content), dim=1)
            reference_logits = torch.cat((denoising.reference_logits, reference_logits), dim=1)
            mask = denoising.attention_mask
        states = decoder(content, reference_logits, memory, geometry, mask)
        per_layer = zip(
            self.bbox_embed, self.class_embed, states.hidden, states.references, strict=True
        )
        boxes, logits = [], []
        for boxes_of, classes_of, hidden, reference in per_layer:
            normed = decoder.norm(hidden)
            boxes.append(Decoder.refine(boxes_of, normed, reference))
            logits.append(classes_of(normed))
        dense_logits, dense_boxes = self._dense_predictions(proposals, geometry)
        return TrainingOutput(
            pred_logits=torch.stack(logits),
            pred_boxes=torch.stack(boxes),
            proposal_logits=gather_rows(dense_logits, proposals.selected),
            proposal_boxes=proposals.reference_logits.sigmoid(),
            dense_logits=dense_logits,
            dense_boxes=dense_boxes,
            dense_valid=~geometry.invalid,
            anchors=geometry.anchors,
        )

    def encode(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Geometry]:
        """The memory [B, T, d] and its geometry; see `forward`."""
        if images.dim() != _IMAGE_DIMS or images.shape[1] != 3:  # noqa: PLR2004
            raise ValueError(f"images should be [B, 3, H, W], not {tuple(images.shape)}")
        if padding_mask.shape != images.shape[:1] + images.shape[2:]:
            raise ValueError(
                f"padding_mask {tuple(padding_mask.shape)} does not fit {tuple(images.shape)}"
            )
        levels = project_levels(self.backbone[0](images), self.input_proj)
        shapes = tuple((level.shape[2], level.shape[3]) for level in levels)
        geometry = self.transformer.geometry_of(padding_mask, shapes)
        tokens = tokens_of(levels, geometry.spatial_shapes)
        return self.transformer.encoder(tokens, geometry), geometry

    def _dense_predictions(self, proposals: Proposals, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Class logits [B, S, C] and boxes [B, S, 4] of every token; see `TrainingOutput`."""
        transformer = self.transformer
        _, blank_logits = transformer.blank_token(proposals.tokens.dtype)
        logits = torch.where(geometry.invalid[..., None], blank_logits, proposals.logits)
        boxes = Decoder.refine(transformer.enc_out_bbox_embed, proposals.tokens, geometry.anchors)
        return logits, boxes


def build_detector(config: ModelConfig) -> LiteDETR:
    """A detector with fresh weights: float32, on the CPU, in training mode."""
    return LiteDETR(config)
