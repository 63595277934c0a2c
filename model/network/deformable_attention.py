"""The attention module of encoder and decoder: projections around the deformable kernels.

Plain multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, eq. 3) or the
key-aware one of Lite DETR (arXiv 2303.07335, section 3.4), whose weights are the softmax of
query-key products at the sampled locations. Parameter names are the official ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.geometry import Geometry, Shapes
from model.network.linear import Linear, project_and_norm
from model.ops import key_aware_deform_attn, ms_deform_attn


@dataclass(frozen=True)
class SampledTokens:
    """The tokens of all levels, projected for one attention."""

    value: Tensor  # [B, S, M, D], zero on padding unless there are `valid_ratios`
    key: Tensor | None  # as `value`; None: the keys are the values
    spatial_shapes: Shapes  # (H, W) of each level
    valid_ratios: Tensor | None = None  # see `model.ops`


class DeformableAttention(nn.Module):
    """Deformable attention over several feature levels.

    Args:
        config: the architecture; gives channels, heads and levels.
        num_points: sampling points per head and level.
        key_aware: weights are from sampled keys.
        separate_keys: keys have their own projection; otherwise the keys are the values.
        same_loc: one set of offsets shared by all levels.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_points: int,
        *,
        key_aware: bool,
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
        self.key_aware, self.offset_levels = key_aware, 1 if same_loc else num_levels
        self.sampling_offsets = Linear(d_model, num_heads * self.offset_levels * num_points * 2)
        if not self.key_aware:
            self.attention_weights = Linear(d_model, num_heads * num_levels * num_points)
        self.value_proj = Linear(d_model, d_model)
        self.key_proj = Linear(d_model, d_model) if separate_keys else None
        # Lite models carry a query projection even where it is unused.
        has_query = config.key_aware or config.interleaved
        self.query_proj = Linear(d_model, d_model) if has_query else None
        self.output_proj = Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start as a star: one direction for each head, each point one cell further."""
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

    def project(self, tokens: Tensor, geometry: Geometry) -> SampledTokens:
        """Projects the tokens that are attended to, [B, S, d], and zeroes those of padding.

        In inference on a GPU the attention ignores padding instead, which saves a pass over them.
        """
        value = self.value_proj(tokens)
        key = None if self.key_proj is None else self.key_proj(tokens)
        ratios, padding = None, geometry.padding
        ignored = tokens.device.type != "cpu" and not torch.is_grad_enabled()
        if padding is not None and ignored:
            ratios = geometry.valid_ratios
        elif padding is not None:
            value = _zero_rows(value, padding)
            key = None if key is None else _zero_rows(key, padding)
        keys = None if key is None else self._by_head(key)
        return SampledTokens(self._by_head(value), keys, geometry.spatial_shapes, ratios)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        tokens: SampledTokens,
        residual: Tensor,
        *,
        norm: nn.Module,
    ) -> Tensor:
        """Attends from each query to the levels' tokens around its reference.

        Args:
            query: [B, Q, d], position already added.
            reference_points: [B, Q, L, 2] points or [B, Q, L, 4] cxcywh boxes; 0..1 of the
                padded map.
            tokens: what `project` returned for the tokens attended to.
            residual: [B, Q, d], added to the result.
            norm: of the sum.

        Returns:
            [B, Q, d].
        """
        offsets, queries_or_logits = self.sample(query)
        value, located = tokens.value, (tokens.spatial_shapes, reference_points, offsets)
        if self.key_aware:
            attended = key_aware_deform_attn(
                queries_or_logits, tokens.key, value, *located, tokens.valid_ratios
            )
        else:
            attended = ms_deform_attn(value, *located, queries_or_logits, tokens.valid_ratios)
        return project_and_norm(attended.to(query.dtype), self.output_proj, residual, norm)

    def sample(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets [B, Q, M, L or 1, P, 2], and queries [B, Q, M, D] or logits [B, Q, M, L * P]."""
        batch, count, _ = query.shape
        offsets = self.sampling_offsets(query)
        offsets = offsets.view(batch, count, self.num_heads, self.offset_levels, self.num_points, 2)
        return offsets, self._by_head(self.query_layer()(query))

    def query_layer(self) -> Linear:
        """What weighs the samples: queries to compare with keys, or logits."""
        layer = self.query_proj if self.key_aware else self.attention_weights
        return cast(Linear, layer)

    def _by_head(self, x: Tensor) -> Tensor:
        """[B, N, M * n] -> [B, N, M, n]."""
        return x.view(*x.shape[:2], self.num_heads, -1)


def _zero_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Zeroes rows of [B, S, d] where bool [B, S] is True; in place without gradients."""
    if x.requires_grad:
        return x.masked_fill(rows[..., None], 0.0)
    # Only these rows are touched; on a GPU finding them would wait, and an exported network has
    # fixed shapes.
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        x.view(-1, x.shape[-1]).index_fill_(0, rows.flatten().nonzero()[:, 0], 0.0)
        return x
    return x.masked_fill_(rows[..., None], 0.0)
