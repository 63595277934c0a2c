"""Feature levels: backbone maps projected to d channels and laid out as one sequence of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.network import onednn
from model.network.convolution import FoldedConvolution
from model.network.geometry import Shapes
from model.network.linear import affine_of
from model.network.one_call import OneCall
from model.ops.level_projections import LevelProjection, LevelProjections

_GROUPS = 32  # of the GroupNorm after an input projection


class InputProjection(nn.Sequential):
    """A convolution and GroupNorm (official names `0` and `1`)."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, d, H', W']."""
        conv, norm = self
        if isinstance(conv, nn.Conv2d) and isinstance(conv.padding, tuple):
            geometry = conv.kernel_size[1], conv.stride[1], conv.padding[1]
            projected = onednn.convolve_narrow_map(conv, x, *geometry)
        else:  # the inference form
            projected = conv(x)
        return norm(projected)  # type: ignore[no-any-return]

    def inference_form(self, dtype: torch.dtype) -> InputProjection:
        """See `model.network.inference`."""
        conv = self[0]
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        self[0] = FoldedConvolution(conv, conv.weight, conv.bias, dtype, adds=False)
        return self


class InputProjections(OneCall[LevelProjections], nn.ModuleList):
    """The projections of all levels."""

    def inference_form(self, dtype: torch.dtype) -> InputProjections:
        """See `model.network.inference`."""
        levels = [_level_projection(cast(InputProjection, each)) for each in self]
        known = [level for level in levels if level is not None]
        further = sum(level.weight.shape[2] > 1 for level in known)
        takes_place = (
            len(known) == len(levels)
            and further <= 1  # a second one takes the tokens of the first
            and self.can_stack(known[0].weight, dtype)
        )
        if takes_place:
            norm = cast(nn.GroupNorm, cast(InputProjection, self[0])[1])
            self.use_stack(LevelProjections(known, norm.num_groups, norm.eps))
        return self

    def shapes(self, maps: Sequence[Tensor]) -> Shapes:
        """(H, W) of each level, for the maps of strides 8, 16, 32."""
        shapes = [(each.shape[2], each.shape[3]) for each in maps]
        while len(shapes) < len(self):
            height, width = shapes[-1]
            shapes.append((-(-height // 2), -(-width // 2)))
        return tuple(shapes)

    def tokens(self, maps: Sequence[Tensor], shapes: Shapes) -> Tensor:
        """The upper left (H, W) of each level, row by row, finest first: [B, T, d].

        Args:
            maps: [B, C_i, H_i, W_i] of strides 8, 16, 32.
            shapes: (H, W) of each level, not more than `shapes`.
        """
        if self.stack is not None and self.stacked_weights is not None:
            sources = [*maps, maps[-1]][: len(self)]
            return self.stack.run(self.stacked_weights, sources, shapes)
        return tokens_of(project_levels(maps, self), shapes)


def _level_projection(projection: InputProjection) -> LevelProjection | None:
    """The parameters of a level, or None for a kind that the kernels do not have."""
    conv, norm = projection
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    kind = (conv.kernel_size, conv.stride, conv.padding)
    if kind not in (((1, 1), (1, 1), (0, 0)), ((3, 3), (2, 2), (1, 1))):
        return None
    return LevelProjection(conv.weight, conv.bias, affine_of(norm))


def input_projections(channels: Sequence[int], config: ModelConfig) -> InputProjections:
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
    return InputProjections(
        InputProjection(convolution, nn.GroupNorm(_GROUPS, d_model)) for convolution in convolutions
    )


def project_levels(maps: Sequence[Tensor], projections: nn.ModuleList) -> list[Tensor]:
    """The maps of all levels, [B, d, H_i, W_i] each.

    Args:
        maps: [B, C_i, H_i, W_i] of strides 8, 16, 32. The first level past them is projected from
            the coarsest map, each further one from the level before it.
        projections: one a level; see `input_projections`.
    """
    sources, projected = [*maps, maps[-1]], []
    for index, projection in enumerate(projections):
        projected.append(projection(sources[index]))
        if index >= len(maps):
            sources.append(projected[-1])
    return projected


def tokens_of(levels: Sequence[Tensor], shapes: Shapes) -> Tensor:
    """The upper left (H, W) of each [B, d, H', W'] map, row by row, finest first: [B, T, d]."""
    rectangles = [
        level[:, :, :height, :width].permute(0, 2, 3, 1)
        for level, (height, width) in zip(levels, shapes, strict=True)
    ]
    if torch.is_grad_enabled():
        return torch.cat([rectangle.flatten(1, 2) for rectangle in rectangles], dim=1)
    # Written in place: a cropped map is copied once.
    batch, channels = levels[0].shape[:2]
    sizes = [height * width for height, width in shapes]
    tokens = levels[0].new_empty(batch, sum(sizes), channels)
    for part, rectangle in zip(tokens.split(sizes, dim=1), rectangles, strict=True):  # type: ignore[no-untyped-call]
        part.view(rectangle.shape).copy_(rectangle)
    return tokens
