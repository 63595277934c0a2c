"""The arguments of the warp kernels: which kernel a call requires, and the structs that it reads.

The queries of an encoder layer are the tokens of the last levels; the kernels then compute them in
tiles of 4 x 3, whose points share cache lines (`csrc/tiles.cuh`). Any other queries, such as the
decoder's, are computed in their order. With few queries each one's points are split over four
times as many lanes, so that the GPU has enough to do. Neither depends on the batch size: an image
gets the same bits alone and in a batch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from model.ops.cpu import InputGradients, Inputs
from model.ops.nvrtc import Kind, Variant

MAX_LEVELS = 8
LANES, CHANNELS_PER_LANE = 32, 8
ALIGNMENT_BYTES = 16  # of every array

TILE_WIDTH, TILE_HEIGHT = 4, 3  # as in csrc/tiles.cuh
_MAX_TILES = 1 << 20  # more would make the quotients of csrc/tiles.cuh inexact
_FEW_QUERIES = 1024
_SPLITS = {32: 4, 64: 4}  # by channels of a head
# Deterministic sums of gradients: the largest exponents of their unit and of their magnitude.
_MAX_SCALE_EXPONENT, _SUM_BITS = 100, 62


def variant_of(inputs: Inputs, *, backward: bool = False, deterministic: bool = False) -> Variant:
    """The kernel for a call.

    Args:
        inputs: of the forward pass.
        backward: the kernel of the backward pass.
        deterministic: the backward pass adds integers, in any order with the same result.
    """
    kind: Kind = "separate_keys"
    if inputs.query is None:
        kind = "plain"
    elif inputs.key is None:
        kind = "shared_keys"
    value_type, offset_type = inputs.value.dtype, inputs.sampling_offsets.dtype
    _, queries, heads, offset_levels, points, _ = inputs.sampling_offsets.shape
    channels = inputs.value.shape[3]
    return Variant(
        value_type,
        offset_type if offset_type == value_type else torch.float32,
        kind,
        channels,
        heads,
        len(inputs.spatial_shapes) // 2,
        points,
        inputs.reference_points.shape[-1],
        offset_levels,
        splits=1 if backward else splits_for(queries, channels),
        backward=backward,
        deterministic=deterministic,
    )


def splits_for(queries: int, channels: int) -> int:
    """Over how many groups of lanes the points of a row are split."""
    return _SPLITS.get(channels, 1) if queries <= _FEW_QUERIES else 1


class _Level(ctypes.Structure):
    """Mirror of `Level` in csrc/call.cuh."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("height", "width", "start")),
        *((name, ctypes.c_int) for name in ("first_tile", "tiles_across")),
        ("inverse_across", ctypes.c_float),
    )


class CallStruct(ctypes.Structure):
    """Mirror of `Call` in csrc/call.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("value", "key", "query", "logits")),
        *((name, ctypes.c_void_p) for name in ("reference_points", "offsets", "valid_ratios")),
        ("output", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("tokens", "queries")),
        ("one", ctypes.c_uint),
        ("tiled", ctypes.c_int),
        ("levels", _Level * MAX_LEVELS),
    )


class BackwardCallStruct(ctypes.Structure):
    """Mirror of `BackwardCall` in csrc/call.cuh."""

    _fields_ = (
        ("call", CallStruct),
        *((name, ctypes.c_void_p) for name in ("grad_output", "grad_value", "grad_key")),
        *((name, ctypes.c_void_p) for name in ("grad_query", "grad_logits")),
        *((name, ctypes.c_void_p) for name in ("grad_reference_points", "grad_offsets")),
        ("sum_scale", ctypes.c_void_p),
    )


class Launchable(Protocol):
    """The argument of a kernel, and how it is launched.

    Attributes:
        struct: the kernel's only parameter.
        grid: blocks along x and y.
        threads: of a block.
    """

    grid: tuple[int, int]
    threads: int

    @property
    def struct(self) -> ctypes.Structure:
        """See above."""


class Call:
    """The struct that a kernel reads, and its launch; keeps alive what the struct points at.

    Attributes:
        struct: the kernel's only parameter.
        grid: blocks along x and y.
        threads: of a block.
    """

    struct: ctypes.Structure

    def __init__(self, inputs: Inputs, variant: Variant, output: Tensor | None) -> None:
        given = (inputs.value, inputs.key, inputs.query, inputs.logits)
        self.tensors = (
            *(None if tensor is None else array(tensor, variant.value_type) for tensor in given),
            array(inputs.reference_points, torch.float32),
            array(inputs.sampling_offsets, variant.offset_type),
            None if inputs.valid_ratios is None else array(inputs.valid_ratios, torch.float32),
            output,
        )
        sides = inputs.spatial_shapes
        shapes = list(zip(sides[::2], sides[1::2], strict=True))
        batch, queries = inputs.sampling_offsets.shape[:2]
        tiles = _tiles_of_levels(shapes, queries) if variant.splits == 1 else None
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in self.tensors)
        self.struct = CallStruct(
            *pointers,
            sum(height * width for height, width in shapes),
            queries,
            1,
            tiles is not None,
            _levels(shapes, tiles),
        )
        self.threads = variant.warps * LANES
        computed = queries if tiles is None else sum(tiles) * TILE_WIDTH * TILE_HEIGHT
        lanes_of_row = variant.channels // CHANNELS_PER_LANE * variant.splits
        rows = LANES // lanes_of_row * variant.warps  # of a block
        self.grid = (-(-computed * variant.heads // rows), batch)


class BackwardCall(Call):
    """The struct of the backward pass.

    Args:
        inputs: of the forward pass.
        variant: of the backward kernel.
        grad_output: [B, Q, M*D].
        grads: where the kernel writes. Of values and keys: sums that begin with 0.
        sum_scale: float32 scalar, the units of 1 in sums of integers; None: float32 sums.
    """

    def __init__(
        self,
        inputs: Inputs,
        variant: Variant,
        grad_output: Tensor,
        grads: InputGradients,
        sum_scale: Tensor | None,
    ) -> None:
        super().__init__(inputs, variant, None)
        self.more_tensors = (
            array(grad_output, variant.value_type),
            *(grads.value, grads.key, grads.query, grads.logits),
            *(grads.reference_points, grads.sampling_offsets, sum_scale),
        )
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in self.more_tensors)
        self.struct = BackwardCallStruct(self.struct, *pointers)


def array(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in that type, contiguous and aligned for 16-byte loads."""
    tensor = tensor.to(dtype).contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT_BYTES == 0 else tensor.clone()


def sum_scale(inputs: Inputs, grad_output: Tensor) -> Tensor:
    """A power of two that makes sums of gradients integers without overflow; float32 scalar.

    A gradient that a point adds to a token is at most w g + |ds q| / sqrt(D); the weights w of a
    query add up to 1, and |ds| <= 2 w D max|g| max|v|. Every query adds at most twice that. Sums
    have 62 bits below this bound: values of 1 among 20,000 queries leave 40 bits for a gradient.
    """
    largest = grad_output.abs().amax().double()
    channels, queries = inputs.value.shape[3], inputs.sampling_offsets.shape[1]
    bound = largest
    if inputs.query is not None:
        keys = inputs.query.abs().amax().double() * inputs.value.abs().amax().double()
        bound = largest + 2.0 * channels**0.5 * largest * keys
    exponent = torch.frexp(bound * (2.0 * queries)).exponent.clamp(
        min=_SUM_BITS - _MAX_SCALE_EXPONENT
    )
    scale = torch.ldexp(torch.ones_like(bound), _SUM_BITS - exponent)
    # Not finite: NaN everywhere, as an integer cannot be NaN.
    return torch.where(bound.isfinite(), scale, torch.nan).float()


def _tiles_of_levels(shapes: Sequence[tuple[int, int]], queries: int) -> list[int] | None:
    """How many tiles of queries each level has; None if no last levels have as many tokens."""
    areas = [height * width for height, width in shapes]
    for first in range(len(shapes)):
        if sum(areas[first:]) == queries:
            tiles = [
                -(-height // TILE_HEIGHT) * -(-width // TILE_WIDTH) for height, width in shapes
            ]
            tiles[:first] = [0] * first
            return tiles if sum(tiles) <= _MAX_TILES else None
    return None


def _levels(shapes: Sequence[tuple[int, int]], tiles: Sequence[int] | None) -> ctypes.Array[_Level]:
    levels = (_Level * MAX_LEVELS)()
    starts = accumulate((height * width for height, width in shapes), initial=0)
    first_tiles = accumulate(tiles or [0] * len(shapes), initial=0)
    located = zip(shapes, starts, first_tiles, strict=False)  # both sums have one more: the total
    for number, ((height, width), start, first_tile) in enumerate(located):
        across = -(-width // TILE_WIDTH)
        levels[number] = _Level(height, width, start, first_tile, across, 1.0 / across)
    return levels
