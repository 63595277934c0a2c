"""Deformable attention by gathers of rows, for exported networks.

The mathematics of `reference.py` without `grid_sample`: standard operators of every runtime, with
any batch size. A sample is the sum of its four corners, each a row of the tokens. It takes more
memory than the other implementations and computes no gradients for positions outside a map.
"""

# The operations have the arguments of the formulas.
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Normalised coordinates whose four corners lie outside a map of any size.
_OUTSIDE_BEFORE, _OUTSIDE_BEHIND = -1.0, 2.0


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """Plain deformable attention; see `model.ops.ms_deform_attn`."""
    exact = torch.promote_types(value.dtype, torch.float32)
    samples = _sample(value.to(exact), spatial_shapes, reference_points, sampling_offsets)
    return _weighted_sum(samples, attention_logits.to(exact).softmax(-1)).to(value.dtype)


def key_aware_deform_attn(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
) -> Tensor:
    """Key-aware attention; see `model.ops.key_aware_deform_attn`."""
    exact = torch.promote_types(value.dtype, torch.float32)
    values = _sample(value.to(exact), spatial_shapes, reference_points, sampling_offsets)
    keys = values
    if key is not None:
        keys = _sample(key.to(exact), spatial_shapes, reference_points, sampling_offsets)
    scores = (query.to(exact)[..., None, :] * keys).sum(-1)  # [B, Q, M, L*P]
    weights = (scores * value.shape[-1] ** -0.5).softmax(-1)
    return _weighted_sum(values, weights).to(value.dtype)


def _sample(
    tokens: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
) -> Tensor:
    """Bilinear samples [B, Q, M, L*P, channels] of tokens [B, S, M, channels]."""
    batch, count, heads, channels = tokens.shape
    device = tokens.device
    sides = torch.tensor([shape[::-1] for shape in spatial_shapes], device=device)  # [L, (x, y)]
    sizes = [height * width for height, width in spatial_shapes]
    starts = torch.tensor([sum(sizes[:level]) for level in range(len(sizes))], device=device)
    places = _places(sides, reference_points, sampling_offsets)  # [B, Q, M, L, P, (x, y)]
    images = torch.arange(batch, device=device)[:, None, None] * (count * heads)
    first = (images + torch.arange(heads, device=device)[:, None])[:, None, :, :, None]
    rows = tokens.reshape(-1, channels)
    total: Tensor | None = None
    cells = _neighbours(places, sides)
    for y_cells, y_weights in cells:
        line = y_cells[..., 1] * sides[:, None, 0] + starts[:, None]  # [B, Q, M, L, P]
        for x_cells, x_weights in cells:
            index = ((line + x_cells[..., 0]) * heads + first).flatten(3)
            weight = (y_weights[..., 1] * x_weights[..., 0]).flatten(3)
            corner = rows.index_select(0, index.flatten()).view(*index.shape, channels)
            part = corner * weight[..., None]
            total = part if total is None else total + part
    assert total is not None
    return total


def _places(sides: Tensor, reference_points: Tensor, sampling_offsets: Tensor) -> Tensor:
    """Where to sample, in cells: 0 is the centre of the first cell of its level.

    Args:
        sides: [L, 2], (width, height) of each level.
        reference_points: [B, Q, L, 2] points or [B, Q, L, 4] cxcywh boxes.
        sampling_offsets: [B, Q, M, L, P, 2], or [B, Q, M, 1, P, 2] shared by all levels.

    Returns:
        [B, Q, M, L, P, 2], (x, y), within the map or less than its size outside.
    """
    exact = torch.promote_types(sampling_offsets.dtype, torch.float32)
    offsets = sampling_offsets.to(exact)
    references = reference_points.to(exact)[:, :, None, :, None]  # [B, Q, 1, L, 1, 2 or 4]
    lengths = sides.to(exact)[:, None]
    centres = references[..., :2]
    if references.shape[-1] == 4:  # noqa: PLR2004 - cxcywh
        places = centres + offsets / offsets.shape[4] * references[..., 2:] * 0.5
    else:
        places = centres + offsets / lengths
    # Not `clamp`, which would keep NaN: comparisons with NaN are false.
    places = torch.where(places > _OUTSIDE_BEFORE, places, _OUTSIDE_BEFORE)
    places = torch.where(places < _OUTSIDE_BEHIND, places, _OUTSIDE_BEHIND)
    return places * lengths - 0.5


def _neighbours(places: Tensor, sides: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The cells before and behind each coordinate, inside the map; weight 0 if they were not."""
    lower = places.floor()
    behind = places - lower
    found = []
    for step, weight in ((0, 1 - behind), (1, behind)):
        cell = lower.to(torch.int64) + step
        nearest = cell.clamp(min=0).minimum(sides[:, None] - 1)
        found.append((nearest, torch.where(cell == nearest, weight, 0.0)))
    return found


def _weighted_sum(samples: Tensor, weights: Tensor) -> Tensor:
    """[B, Q, M, n, D] and [B, Q, M, n] -> [B, Q, M*D]."""
    return (samples * weights[..., None]).sum(3).flatten(2)
