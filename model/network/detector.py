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
from model.network.geometry import Geometry
from model.network.levels import input_projections
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
        hold = DetectorBackbone if config.backbone_in_body else build_backbone
        self.backbone = nn.ModuleList((hold(config.backbone),))
        self.input_proj = input_projections(self.body.channels, config)
        if config.refined_positions:  # only for denoising queries
            self.label_enc = nn.Embedding(config.num_classes + 1, config.d_model)
        self.query_embed: nn.Embedding | None = None  # content of the queries
        if config.learned_content and not config.refined_positions:
            count = config.num_queries + config.one_to_many_queries
            self.query_embed = nn.Embedding(count, config.d_model)
        self.bbox_embed, self.class_embed = heads(config)
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
        return self.decode(memory, geometry, self.transformer.propose(memory, geometry))

    def decode(self, memory: Tensor, geometry: Geometry, proposals: Proposals) -> DetectorOutput:
        """The last layer's predictions of the selected tokens; see `forward`."""
        decoder = self.transformer.decoder
        content, position = self._queries(proposals, memory)
        logits, boxes = decoder.predict(
            content, proposals.reference_logits, memory, geometry, position
        )
        return DetectorOutput(logits, boxes, memory)

    def forward_training(
        self, images: Tensor, padding_mask: Tensor, denoising: DenoisingQueries | None
    ) -> TrainingOutput:
        """As `forward`, with every layer's predictions and the encoder's proposals.

        Args:
            images: see `forward`.
            padding_mask: see `forward`.
            denoising: noised targets; only for detectors with `label_enc`, or None.

        Raises:
            ValueError: for images and masks whose shapes contradict each other.
        """
        memory, geometry = self.encode(images, padding_mask)
        decoder, further = self.transformer.decoder, self.config.one_to_many_queries
        proposals = self.transformer.propose(memory, geometry, further)
        content, position = self._queries(proposals, memory)
        reference_logits = proposals.reference_logits.detach()
        one_to_many = max(0, content.shape[1] - self.config.num_queries)
        mask = separate_branches(content.shape[1], one_to_many, content.device)
        if denoising is not None:
            content = torch.cat((denoising.content, content), dim=1)
            reference_logits = torch.cat((denoising.reference_logits, reference_logits), dim=1)
            mask = denoising.attention_mask
        states = decoder(content, reference_logits, memory, geometry, mask, position)
        per_layer = zip(
            self.bbox_embed, self.class_embed, states.hidden, states.references, strict=False
        )
        boxes, logits = [], []
        for boxes_of, classes_of, hidden, reference in per_layer:
            normed = decoder.norm(hidden)
            boxes.append(decoder.refine(boxes_of, normed, reference))
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
            one_to_many=one_to_many,
        )

    def encode(self, images: Tensor, padding_mask: Tensor) -> tuple[Tensor, Geometry]:
        """The memory [B, T, d] and its geometry; see `forward`."""
        if images.dim() != _IMAGE_DIMS or images.shape[1] != 3:  # noqa: PLR2004
            raise ValueError(f"images should be [B, 3, H, W], not {tuple(images.shape)}")
        if padding_mask.shape != images.shape[:1] + images.shape[2:]:
            raise ValueError(
                f"padding_mask {tuple(padding_mask.shape)} does not fit {tuple(images.shape)}"
            )
        maps = self.backbone[0](images)
        shapes = self.input_proj.shapes(maps)
        geometry = self.transformer.geometry_of(padding_mask, shapes)
        tokens = self.input_proj.tokens(maps, geometry.spatial_shapes)
        return self.transformer.encoder(tokens, geometry), geometry

    def _dense_predictions(self, proposals: Proposals, geometry: Geometry) -> tuple[Tensor, Tensor]:
        """Class logits [B, S, C] and boxes [B, S, 4] of every token; see `TrainingOutput`."""
        transformer = self.transformer
        _, blank_logits = transformer.blank_token(proposals.tokens.dtype)
        logits = torch.where(geometry.invalid[..., None], blank_logits, proposals.logits)
        head, refine = transformer.token_box_head, transformer.decoder.refine
        return logits, refine(head, proposals.tokens, geometry.anchors)

    def _queries(self, proposals: Proposals, memory: Tensor) -> tuple[Tensor, Tensor | None]:
        """Content and position of the queries; see `Transformer.queries`."""
        learned = None if self.query_embed is None else self.query_embed.weight
        return self.transformer.queries(proposals, learned, memory.dtype)


def heads(config: ModelConfig) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The box heads and the class heads of the decoder's layers; see `ModelConfig.shared_heads`."""
    if config.shared_heads:
        boxes, classes = box_head(config.d_model), class_head(config)
        layers = range(config.decoder_layers)
        return nn.ModuleList(boxes for _ in layers), nn.ModuleList(classes for _ in layers)
    layers = range(config.decoder_layers + 1)
    return (
        nn.ModuleList(box_head(config.d_model) for _ in layers),
        nn.ModuleList(class_head(config) for _ in layers),
    )


def separate_branches(count: int, one_to_many: int, device: torch.device) -> Tensor | None:
    """Attention mask between two branches of queries, which do not see each other.

    Args:
        count: all queries.
        one_to_many: the last of them, which are the second branch.
        device: of the mask.

    Returns:
        Bool [count, count], True where a query may not see another; None if there is one branch.
    """
    if one_to_many == 0:
        return None
    second = torch.arange(count, device=device) >= count - one_to_many
    return second[:, None] != second


def build_detector(config: ModelConfig) -> LiteDETR:
    """A detector with fresh weights: float32, on the CPU, in training mode."""
    return LiteDETR(config)
