"""The decoder: queries attend to one another and to the memory, and refine their boxes.

DINO (arXiv 2203.03605): conditional queries from boxes, box refinement a layer, and "look
forward twice": a layer's output box may send its gradient into the layer before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.deformable_attention import DeformableAttention
from model.position_encoding import encode_boxes
from model.query_selection import inverse_sigmoid


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, num_layers: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (num_layers - 1), outputs]
        self.layers = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, FFN; each with a residual and a norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d_model = config.d_model
        # The official decoder ignores proj_key and same_loc: they are encoder settings.
        self.cross_attn = DeformableAttention(
            d_model,
            config.num_heads,
            config.num_feature_levels,
            config.decoder_points,
            key_aware=config.key_aware,
            query_projection=config.interleaved,
        )
        self.norm1 = nn.LayerNorm(d_model)
        self.self_attn = nn.MultiheadAttention(d_model, config.num_heads, batch_first=True)
        self.norm2 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, config.decoder_feedforward)
        self.linear2 = nn.Linear(config.decoder_feedforward, d_model)
        self.norm3 = nn.LayerNorm(d_model)

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        reference_boxes: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None,
        attention_mask: Tensor | None,
    ) -> Tensor:
        """[B, Q, d] queries -> [B, Q, d]; `reference_boxes` [B, Q, L, 4]."""
        q = x + query_position
        attended, _ = self.self_attn(q, q, x, attn_mask=attention_mask, need_weights=False)
        x = self.norm2(x + attended)
        attended = self.cross_attn(
            x + query_position, reference_boxes, memory, spatial_shapes, padding_mask
        )
        x = self.norm1(x + attended)
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class DecoderStates:
    """What each decoder layer leaves.

    Attributes:
        hidden: a layer's normed queries, [B, Q, d] each.
        references: the boxes a layer received, [B, Q, 4] cxcywh 0..1 each.
    """

    hidden: tuple[Tensor, ...]
    references: tuple[Tensor, ...]


class Decoder(nn.Module):
    """`config.decoder_layers` layers around shared heads.

    Args:
        config: the architecture.
        bbox_embed: one box head a layer (DINO shares one module).
        class_embed: one class head a layer; kept here for the official names only.
    """

    def __init__(
        self, config: ModelConfig, bbox_embed: nn.ModuleList, class_embed: nn.ModuleList
    ) -> None:
        super().__init__()
        d_model = config.d_model
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(d_model)
        self.ref_point_head = MLP(2 * d_model, d_model, d_model, 2)
        self.bbox_embed = bbox_embed
        self.class_embed = class_embed

    def forward(
        self,
        content: Tensor,
        reference_logits: Tensor,
        memory: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        valid_ratios: Tensor,
        padding_mask: Tensor | None,
        attention_mask: Tensor | None = None,
    ) -> DecoderStates:
        """Runs the layers.

        Args:
            content: [B, Q, d].
            reference_logits: [B, Q, 4], boxes before the sigmoid.
            memory: [B, S, d].
            spatial_shapes: (H, W) of each level.
            valid_ratios: [B, L, 2].
            padding_mask: bool [B, S], True on padding, or None.
            attention_mask: bool [Q, Q], True where a query may not see another, or None.
        """
        ratios = torch.cat((valid_ratios, valid_ratios), dim=-1)[:, None]  # [B, 1, L, 4]
        x, boxes = content, reference_logits.sigmoid()
        received = boxes  # with its gradient; `boxes` goes on without
        hidden, references = [], []
        for layer, head in zip(self.layers, self.bbox_embed, strict=True):
            boxes_by_level = boxes[:, :, None] * ratios
            query_position = self.ref_point_head(
                encode_boxes(boxes_by_level[:, :, 0], content.shape[-1])
            )
            x = layer(
                x,
                query_position,
                boxes_by_level,
                memory,
                spatial_shapes,
                padding_mask,
                attention_mask,
            )
            hidden.append(self.norm(x))
            references.append(received)
            if len(hidden) < len(self.layers):
                received = (head(x) + inverse_sigmoid(boxes)).sigmoid()
                boxes = received.detach()
        return DecoderStates(tuple(hidden), tuple(references))
