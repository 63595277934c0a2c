"""The attention module of encoder and decoder: projections around the deformable kernels.

Plain multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, eq. 3) or the
key-aware one of Lite DETR (arXiv 2303.07335, section 3.4), whose weights are the softmax of
query-key products at the sampled locations. Parameter names are the official ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.ops import key_aware_deform_attn, ms_deform_attn


class DeformableAttention(nn.Module):
    """Deformable attention over several feature levels.

    Args:
        d_model: channels of a token.
        num_heads: heads; d_model / num_heads channels each.
        num_levels: feature levels.
        num_points: sampling points a head and level.
        key_aware: weights from sampled keys; otherwise from a linear layer on the query.
        separate_keys: keys have a projection of their own; otherwise keys are the values.
        same_loc: one set of offsets shared by all levels.
        query_projection: whether `query_proj` exists (Lite models carry it even when unused).
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        *,
        key_aware: bool,
        separate_keys: bool = False,
        same_loc: bool = False,
        query_projection: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.key_aware, self.offset_levels = key_aware, 1 if same_loc else num_levels
        self.sampling_offsets = nn.Linear(d_model, num_heads * self.offset_levels * num_points * 2)
        if not key_aware:
            self.attention_weights = nn.Linear(d_model, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.key_proj = nn.Linear(d_model, d_model) if separate_keys else None
        self.query_proj = nn.Linear(d_model, d_model) if query_projection or key_aware else None
        self.output_proj = nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start as a star: each head looks its own way, each point one cell further."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        star = torch.stack((angles.cos(), angles.sin()), dim=-1)
        star = star / star.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = star[:, None, None, :] * steps[None, None, :, None]  # [M, 1, P, 2]
        with torch.no_grad():
            bias = offsets.expand(-1, self.offset_levels, -1, -1).reshape(-1)
            self.sampling_offsets.bias.copy_(bias)
        if not self.key_aware:
            nn.init.zeros_(self.attention_weights.weight)
            nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.key_proj, self.query_proj, self.output_proj):
            if layer is not None:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        tokens: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None,
    ) -> Tensor:
        """Attends from each query to the levels' tokens around its reference.

        Args:
            query: [B, Q, d], position already added.
            reference_points: [B, Q, L, 2] points or [B, Q, L, 4] cxcywh boxes, 0..1 of the padded map.
            tokens: [B, S, d], levels concatenated.
            spatial_shapes: (H, W) of each level.
            padding_mask: bool [B, S], True on padding, or None.

        Returns:
            [B, Q, d].
        """
        batch, num_queries, d_model = query.shape
        per_head = (self.num_heads, d_model // self.num_heads)
        value = self._projected(self.value_proj, tokens, padding_mask).unflatten(-1, per_head)
        offsets = self.sampling_offsets(query).view(
            batch, num_queries, self.num_heads, self.offset_levels, self.num_points, 2
        )
        if self.key_aware:
            assert self.query_proj is not None
            key = None
            if self.key_proj is not None:
                key = self._projected(self.key_proj, tokens, padding_mask).unflatten(-1, per_head)
            projected_query = self.query_proj(query).unflatten(-1, per_head)
            attended = key_aware_deform_attn(
                projected_query, key, value, spatial_shapes, reference_points, offsets
            )
        else:
            logits = self.attention_weights(query).view(
                batch, num_queries, self.num_heads, self.num_levels * self.num_points
            )
            attended = ms_deform_attn(value, spatial_shapes, reference_points, offsets, logits)
        return self.output_proj(attended)  # type: ignore[no-any-return]

    @staticmethod
    def _projected(layer: nn.Linear, tokens: Tensor, padding_mask: Tensor | None) -> Tensor:
        projected: Tensor = layer(tokens)
        if padding_mask is None:
            return projected
        return projected.masked_fill(padding_mask[..., None], 0.0)
