"""The attention module of encoder and decoder: projections around the deformable kernels.

Plain multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, eq. 3) or the
key-aware one of Lite DETR (arXiv 2303.07335, section 3.4), whose weights are the softmax of
query-key products at the sampled locations. Parameter names are the official ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.levels import Levels
from model.ops import key_aware_deform_attn, ms_deform_attn


class DeformableAttention(nn.Module):
    """Deformable attention over several feature levels.

    Args:
        config: the architecture; gives channels, heads, levels and whether keys are sampled.
        num_points: sampling points a head and level.
        separate_keys: keys have a projection of their own; otherwise keys are the values.
        same_loc: one set of offsets shared by all levels.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_points: int,
        *,
        separate_keys: bool = False,
        same_loc: bool = False,
    ) -> None:
        super().__init__()
        d_model, num_heads, num_levels = (
            config.d_model,
            config.num_heads,
            config.num_feature_levels,
        )
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.key_aware, self.offset_levels = config.key_aware, 1 if same_loc else num_levels
        self.sampling_offsets = nn.Linear(d_model, num_heads * self.offset_levels * num_points * 2)
        if not self.key_aware:
            self.attention_weights = nn.Linear(d_model, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.key_proj = nn.Linear(d_model, d_model) if separate_keys else None
        # Lite models carry a query projection even where it is unused.
        has_query = config.key_aware or config.interleaved
        self.query_proj = nn.Linear(d_model, d_model) if has_query else None
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

    def forward(self, query: Tensor, reference_points: Tensor, memory: Levels) -> Tensor:
        """Attends from each query to the levels' tokens around its reference.

        Args:
            query: [B, Q, d], position already added.
            reference_points: [B, Q, L, 2] points or [B, Q, L, 4] cxcywh boxes; 0..1 of the
                padded map.
            memory: the levels attended to.

        Returns:
            [B, Q, d].
        """
        batch, num_queries, _ = query.shape
        value = self._projected(self.value_proj, memory)
        offsets = self.sampling_offsets(query).view(
            batch, num_queries, self.num_heads, self.offset_levels, self.num_points, 2
        )
        shapes = memory.spatial_shapes
        if self.key_aware:
            assert self.query_proj is not None
            key = None if self.key_proj is None else self._projected(self.key_proj, memory)
            attended = key_aware_deform_attn(
                self._by_head(self.query_proj(query)), key, value, shapes, reference_points, offsets
            )
        else:
            logits = self.attention_weights(query).view(
                batch, num_queries, self.num_heads, self.num_levels * self.num_points
            )
            attended = ms_deform_attn(value, shapes, reference_points, offsets, logits)
        output: Tensor = self.output_proj(attended)
        return output

    def _projected(self, layer: nn.Linear, memory: Levels) -> Tensor:
        """[B, S, M, D], zero on padding."""
        return self._by_head(layer(memory.tokens).masked_fill(memory.padding_mask[..., None], 0.0))

    def _by_head(self, x: Tensor) -> Tensor:
        """[B, N, d] -> [B, N, M, D]."""
        return x.view(*x.shape[:2], self.num_heads, -1)
