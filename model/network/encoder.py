"""The interleaved multi-scale encoder (Lite DETR, arXiv 2303.07335, sections 3.2 and 3.3).

High-level tokens (the few of the coarse levels) are updated in every layer; the many low-level
tokens only in the last layer of each block, with a narrow FFN of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.network.deformable_attention import DeformableAttention
from model.network.levels import Levels


def cell_reference_points(
    spatial_shapes: Sequence[tuple[int, int]], valid_ratios: Tensor
) -> Tensor:
    """Centres of all cells, seen from every level.

    Args:
        spatial_shapes: (H, W) of each level.
        valid_ratios: [B, L, 2], unpadded share (w, h) of each level.

    Returns:
        [B, S, L, 2], (x, y) in 0..1 of the padded maps.
    """
    per_level = []
    for level, (height, width) in enumerate(spatial_shapes):
        y = torch.arange(height, dtype=valid_ratios.dtype, device=valid_ratios.device) + 0.5
        x = torch.arange(width, dtype=valid_ratios.dtype, device=valid_ratios.device) + 0.5
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        y_valid = grid_y.reshape(1, -1) / (valid_ratios[:, None, level, 1] * height)
        x_valid = grid_x.reshape(1, -1) / (valid_ratios[:, None, level, 0] * width)
        per_level.append(torch.stack((x_valid, y_valid), dim=-1))
    return torch.cat(per_level, dim=1)[:, :, None] * valid_ratios[:, None]


class EncoderLayer(nn.Module):
    """Deformable self-attention and FFN.

    Args:
        config: the architecture.
        small_expand: low-level tokens take a narrow FFN (`linear12`, `linear22`, `norm22`).
    """

    def __init__(self, config: ModelConfig, *, small_expand: bool) -> None:
        super().__init__()
        d_model, width = config.d_model, config.encoder_feedforward
        self.self_attn = DeformableAttention(
            config,
            config.encoder_points,
            separate_keys=config.separate_keys,
            same_loc=config.same_loc,
        )
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, width)
        self.linear2 = nn.Linear(width, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.small_expand = small_expand
        if small_expand:
            self.linear12 = nn.Linear(d_model, d_model)
            self.linear22 = nn.Linear(d_model, d_model)
            self.norm22 = nn.LayerNorm(d_model)

    def forward(
        self, levels: Levels, position: Tensor, reference_points: Tensor, start: int, num_low: int
    ) -> Tensor:
        """Updates the tokens from `start` on.

        Args:
            levels: all tokens, which serve as keys and values.
            position: [B, S - start, d] of the updated tokens.
            reference_points: [B, S - start, L, 2] of the updated tokens.
            start: the first token to update.
            num_low: how many leading tokens of all are low-level.

        Returns:
            [B, S - start, d].
        """
        queries = levels.tokens[:, start:]
        attended = self.self_attn(queries + position, reference_points, levels)
        x = self.norm1(queries + attended)
        if not self.small_expand:
            return self._feedforward(x)
        low, high = x[:, : num_low - start], x[:, num_low - start :]
        low = self.norm22(low + self.linear22(F.relu(self.linear12(low))))
        return torch.cat((low, self._feedforward(high)), dim=1)

    def _feedforward(self, x: Tensor) -> Tensor:
        updated: Tensor = self.norm2(x + self.linear2(F.relu(self.linear1(x))))
        return updated


class InterleavedEncoder(nn.Module):
    """Layers in blocks; only a block's last layer touches the low-level tokens.

    Without interleaving (`config.interleaved` off) every layer updates every token: plain DINO.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers_per_block = config.encoder_layers // config.encoder_blocks
        self.num_low_levels = config.num_feature_levels - config.high_level_scales
        self.interleaved = config.interleaved
        self.layers = nn.ModuleList(
            EncoderLayer(config, small_expand=config.interleaved and self.updates_all(index))
            for index in range(config.encoder_layers)
        )

    def updates_all(self, index: int) -> bool:
        """Whether that layer updates the low-level tokens too."""
        return not self.interleaved or (index + 1) % self.layers_per_block == 0

    def forward(self, levels: Levels) -> Tensor:
        """Encodes all tokens: memory [B, S, d]."""
        points = cell_reference_points(levels.spatial_shapes, levels.valid_ratios)
        num_low = sum(h * w for h, w in levels.spatial_shapes[: self.num_low_levels])
        for index, layer in enumerate(self.layers):
            start = 0 if self.updates_all(index) else num_low
            updated = layer(levels, levels.position[:, start:], points[:, start:], start, num_low)
            levels = replace(levels, tokens=torch.cat((levels.tokens[:, :start], updated), dim=1))
        return levels.tokens
