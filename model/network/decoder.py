"""The decoder: queries attend to one another and to the memory, and refine their boxes.

DINO (arXiv 2203.03605): conditional queries from boxes, box refinement a layer, and "look
forward twice": a layer's output box may send its gradient into the layer before.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.network.deformable_attention import DeformableAttention
from model.network.levels import Levels
from model.network.position_encoding import encode_boxes
from model.network.query_selection import inverse_sigmoid


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, num_layers: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (num_layers - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

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
        self.cross_attn = DeformableAttention(config, config.decoder_points)
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
        memory: Levels,
        attention_mask: Tensor | None,
    ) -> Tensor:
        """[B, Q, d] queries -> [B, Q, d]; `reference_boxes` [B, Q, L, 4]."""
        q = x + query_position
        attended, _ = self.self_attn(q, q, x, attn_mask=attention_mask, need_weights=False)
        x = self.norm2(x + attended)
        x = self.norm1(x + self.cross_attn(x + query_position, reference_boxes, memory))
        updated: Tensor = self.norm3(x + self.linear2(F.relu(self.linear1(x))))
        return updated


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
        memory: Levels,
        attention_mask: Tensor | None = None,
    ) -> DecoderStates:
        """Runs the layers.

        Args:
            content: [B, Q, d].
            reference_logits: [B, Q, 4], boxes before the sigmoid.
            memory: the encoder's output.
            attention_mask: bool [Q, Q], True where a query may not see another, or None.
        """
        ratios = memory.valid_ratios.repeat(1, 1, 2)[:, None]  # [B, 1, L, 4]
        x, boxes = content, reference_logits.sigmoid()
        received = boxes  # with its gradient; `boxes` goes on without
        hidden, references = [], []
        for layer, head in zip(self.layers, self.bbox_embed, strict=True):
            boxes_by_level = boxes[:, :, None] * ratios
            query_position = self.ref_point_head(
                encode_boxes(boxes_by_level[:, :, 0], content.shape[-1])
            )
            x = layer(x, query_position, boxes_by_level, memory, attention_mask)
            hidden.append(self.norm(x))
            references.append(received)
            if len(hidden) < len(self.layers):
                received = (head(x) + inverse_sigmoid(boxes)).sigmoid()
                boxes = received.detach()
        return DecoderStates(tuple(hidden), tuple(references))
