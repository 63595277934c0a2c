"""Feature levels: backbone maps projected to d channels and laid out as one sequence of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.position_encoding import encode_cells

_GROUPS = 32  # of the GroupNorm after an input projection


@dataclass(frozen=True)
class Levels:
    """All feature levels as one sequence.

    Attributes:
        tokens: [B, S, d], the levels' cells row by row, finest level first.
        position: [B, S, d], sine encoding plus level embedding.
        padding_mask: bool [B, S], True on padding.
        spatial_shapes: (H, W) of each level.
        valid_ratios: [B, L, 2], unpadded share (w, h) of each level.
    """

    tokens: Tensor
    position: Tensor
    padding_mask: Tensor
    spatial_shapes: tuple[tuple[int, int], ...]
    valid_ratios: Tensor


def input_projections(channels: Sequence[int], config: ModelConfig) -> nn.ModuleList:
    """1x1 convolutions on the backbone's maps, then 3x3 strided ones for the coarser levels."""
    d_model = config.d_model
    convolutions = [nn.Conv2d(width, d_model, 1) for width in channels]
    width = channels[-1]
    for _ in range(config.num_feature_levels - len(channels)):
        convolutions.append(nn.Conv2d(width, d_model, 3, stride=2, padding=1))
        width = d_model
    for convolution in convolutions:
        nn.init.xavier_uniform_(convolution.weight)
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
    return nn.ModuleList(
        nn.Sequential(convolution, nn.GroupNorm(_GROUPS, d_model)) for convolution in convolutions
    )


def build_levels(
    maps: Sequence[Tensor], projections: nn.ModuleList, level_embed: Tensor, padding_mask: Tensor
) -> Levels:
    """Projects the maps and flattens them.

    Args:
        maps: [B, C_i, H_i, W_i] of strides 8, 16, 32. The first level past them is projected from
            the coarsest map, each further one from the level before it.
        projections: one a level; see `input_projections`.
        level_embed: [L, d].
        padding_mask: bool [B, H, W] of the images, True on padding.
    """
    sources = [*maps, maps[-1]]
    tokens, positions, masks, shapes, ratios = [], [], [], [], []
    for index, projection in enumerate(projections):
        projected = projection(sources[index])
        if index >= len(maps):
            sources.append(projected)
        shape = (projected.shape[2], projected.shape[3])
        mask = _resized_mask(padding_mask, shape)
        position = encode_cells(mask, level_embed.shape[-1], projected.dtype)
        tokens.append(projected.flatten(2).transpose(1, 2))
        positions.append(position.flatten(1, 2) + level_embed[index])
        masks.append(mask.flatten(1))
        ratios.append(_valid_ratio(mask, projected.dtype))
        shapes.append(shape)
    return Levels(
        tokens=torch.cat(tokens, 1),
        position=torch.cat(positions, 1),
        padding_mask=torch.cat(masks, 1),
        spatial_shapes=tuple(shapes),
        valid_ratios=torch.stack(ratios, 1),
    )


def _resized_mask(padding_mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """Nearest neighbour: bool [B, H, W] -> bool [B, *shape]."""
    return F.interpolate(padding_mask[None].float(), size=shape)[0].bool()


def _valid_ratio(padding_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Unpadded share (w, h) of bool [B, H, W] masks, read off their first row and column."""
    height = (~padding_mask[:, :, 0]).to(dtype).mean(1)
    width = (~padding_mask[:, 0, :]).to(dtype).mean(1)
    return torch.stack((width, height), dim=-1)
