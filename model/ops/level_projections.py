"""The input projections on the CPU in one call; float32, without autograd.

`csrc/projections.cpp` computes convolution and group norm of all levels and writes their tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.ops import cpu
from model.ops.packing import Affine, NormPlace, Packer, ProductPlace


@dataclass(frozen=True)
class LevelProjection:
    """The parameters of one level."""

    weight: Tensor  # [d, C, 1, 1], or [d, C, 3, 3] with stride 2 and padding 1
    bias: Tensor  # [d]
    norm: Affine  # [d]; d is a multiple of 32


class _Projection(ctypes.Structure):
    """Mirror of `Projection` in csrc/projections.h."""

    _fields_ = (
        *(("product", ProductPlace), ("norm", NormPlace)),
        *(("inputs", ctypes.c_int64), ("window", ctypes.c_int64)),
    )


class _Projections(ctypes.Structure):
    """Mirror of `Projections` in csrc/projections.h."""

    _fields_ = (
        *(("weights", ctypes.c_void_p), ("levels", ctypes.c_void_p)),
        ("level_count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("maps", "map_shapes", "spatial_shapes")),
        *((name, ctypes.c_int64) for name in ("batch", "channels", "groups")),
        ("eps", ctypes.c_float),
        *(("projected", ctypes.c_void_p), ("tokens", ctypes.c_void_p)),
        ("threads", ctypes.c_int64),
    )


class LevelProjections:
    """Layout of the projections; their weights are one tensor, so that a network may be copied.

    Args:
        levels: finest first.
        groups: of the group norms.
        eps: of these.
    """

    def __init__(self, levels: Sequence[LevelProjection], groups: int, eps: float) -> None:
        self._packer = Packer()
        self._channels, self._groups, self._eps = len(levels[0].weight), groups, eps
        self._levels = (_Projection * len(levels))(*map(self._level, levels))

    def take_weights(self) -> Tensor:
        """The packed weights, float32 [N]."""
        return self._packer.take()

    def run(
        self, weights: Tensor, maps: Sequence[Tensor], spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Projects float32 maps.

        Args:
            weights: of `take_weights`.
            maps: [B, C, H, W] of each level, best channels last.
            spatial_shapes: (H', W') of each level, the upper left part of the result that becomes
                tokens.

        Returns:
            The tokens, row by row, finest level first: [B, T, d].
        """
        maps = [each.permute(0, 2, 3, 1).contiguous() for each in maps]
        batch, channels = len(maps[0]), self._channels
        sides = [side for each in maps for side in each.shape[1:3]]
        pixels = sum(
            -(-each.shape[1] // step) * -(-each.shape[2] // step)
            for each, level in zip(maps, self._levels, strict=True)
            for step in (1 if level.window == 1 else 2,)
        )
        count = sum(height * width for height, width in spatial_shapes)
        tokens = maps[0].new_empty(batch, count, channels)
        projected = maps[0].new_empty(batch * pixels * channels)
        pointers = (ctypes.c_void_p * len(maps))(*(each.data_ptr() for each in maps))
        map_shapes = (ctypes.c_int64 * len(sides))(*sides)
        shapes = (ctypes.c_int64 * (2 * len(spatial_shapes)))(*sum(spatial_shapes, ()))
        call = _Projections(
            *(weights.data_ptr(), ctypes.addressof(self._levels), len(self._levels)),
            *(ctypes.addressof(each) for each in (pointers, map_shapes, shapes)),
            *(batch, channels, self._groups, self._eps),
            *(projected.data_ptr(), tokens.data_ptr(), torch.get_num_threads()),
        )
        if tokens.numel() > 0:
            cpu.library().lite_detr_projections(ctypes.byref(call))
        return tokens

    def _level(self, level: LevelProjection) -> _Projection:
        rows = level.weight.permute(0, 2, 3, 1).flatten(1)
        return _Projection(
            self._packer.product(Affine(rows, level.bias)),
            self._packer.norm(level.norm),
            *(level.weight.shape[1], level.weight.shape[2]),
        )
