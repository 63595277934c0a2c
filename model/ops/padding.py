"""Which tokens of padded maps are inside an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def without_padding(
    tokens: Tensor, spatial_shapes: Sequence[tuple[int, int]], valid_ratios: Tensor
) -> Tensor:
    """The tokens with zeros on the padding at the right and at the bottom of each map.

    Args:
        tokens: [B, S, M, D] of all levels, one level after another.
        spatial_shapes: (H, W) of each level.
        valid_ratios: [B, L, 2], share (w, h) of each map that is inside the image; at least one
            token is.
    """
    inside = []
    for (height, width), ratios in zip(spatial_shapes, valid_ratios.unbind(1), strict=True):
        columns, rows = ratios.float().unbind(-1)
        across = _positions(width, tokens) < (columns * width).round().clamp(min=1)[:, None]
        down = _positions(height, tokens) < (rows * height).round().clamp(min=1)[:, None]
        inside.append((down[:, :, None] & across[:, None]).flatten(1))
    return tokens.masked_fill(~torch.cat(inside, 1)[..., None, None], 0.0)


def _positions(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device)
