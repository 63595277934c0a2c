"""Deformable attention in plain PyTorch: the reference that every kernel is tested against.

Runs on any device and dtype and is differentiable throughout. Positions are computed in at least
float32, whatever the dtype of the values: half precision would misplace points by up to a pixel.
Shapes: B images, S tokens over all levels, M heads, D channels per head, Q queries, L levels,
P points.
"""

# The operations have the arguments of the formulas.
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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
    """Plain deformable attention (arXiv 2010.04159, eq. 3); see `model.ops.ms_deform_attn`."""
    exact = torch.promote_types(value.dtype, torch.float32)
    locations = sampling_locations(spatial_shapes, reference_points, sampling_offsets)
    samples = sample_tokens(value.to(exact), spatial_shapes, locations)  # [B*M, D, Q, L*P]
    weights = _head_major(attention_logits.to(exact)).softmax(-1)  # [B*M, Q, L*P]
    return _weighted_sum(samples, weights, value.shape[2]).to(value.dtype)


def key_aware_deform_attn(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
) -> Tensor:
    """Key-aware attention (arXiv 2303.07335, 3.4); see `model.ops.key_aware_deform_attn`."""
    exact = torch.promote_types(value.dtype, torch.float32)
    channels = value.shape[-1]
    locations = sampling_locations(spatial_shapes, reference_points, sampling_offsets)
    separate = key is not None and key is not value
    tokens = torch.cat((value, key), dim=-1) if separate and key is not None else value
    samples = sample_tokens(tokens.to(exact), spatial_shapes, locations)  # [B*M, D or 2D, Q, L*P]
    values, keys = samples[:, :channels], samples[:, -channels:]
    # Products and sums, not matrix products: autocast leaves them in float32.
    queries = _head_major(query.to(exact)).transpose(1, 2)  # [B*M, D, Q]
    scores = (queries[..., None] * keys).sum(1)  # [B*M, Q, L*P]
    weights = (scores * channels**-0.5).softmax(-1)
    return _weighted_sum(values, weights, value.shape[2]).to(value.dtype)


def sampling_locations(
    spatial_shapes: Sequence[tuple[int, int]], reference_points: Tensor, sampling_offsets: Tensor
) -> Tensor:
    """Where to sample: normalised (x, y), 0..1 inside a level's map.

    A position that is not finite becomes one outside the map, with gradient 0.

    Args:
        spatial_shapes: (H, W) of each level.
        reference_points: [B, Q, L, 2] points or [B, Q, L, 4] cxcywh boxes.
        sampling_offsets: [B, Q, M, L, P, 2], or [B, Q, M, 1, P, 2] shared by all levels.

    Returns:
        [B, Q, M, L, P, 2], float32 or wider.
    """
    exact = torch.promote_types(sampling_offsets.dtype, torch.float32)
    offsets = sampling_offsets.to(exact)
    references = reference_points.to(exact)[:, :, None, :, None]  # [B, Q, 1, L, 1, 2 or 4]
    with torch.no_grad():
        finite = _locations(spatial_shapes, references, offsets).isfinite().all(-1, keepdim=True)
    # Cleaned before the arithmetic, too: 0 * infinity in its backward pass would give NaN.
    references, offsets = references.where(finite, 0.0), offsets.where(finite, 0.0)
    locations = _locations(spatial_shapes, references, offsets)
    return locations.where(finite, _OUTSIDE_BEFORE).clamp(_OUTSIDE_BEFORE, _OUTSIDE_BEHIND)


def _locations(
    spatial_shapes: Sequence[tuple[int, int]], references: Tensor, offsets: Tensor
) -> Tensor:
    centres = references[..., :2]
    if references.shape[-1] == 4:  # noqa: PLR2004 - cxcywh
        return centres + offsets / offsets.shape[4] * references[..., 2:] * 0.5
    # Filled on the device: a copy from the host would make a GPU wait.
    sides = [offsets.new_full((1,), side) for shape in spatial_shapes for side in reversed(shape)]
    return centres + offsets / torch.cat(sides).view(-1, 1, 2)


def sample_tokens(
    tokens: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor
) -> Tensor:
    """Bilinear samples [B*M, channels, Q, L*P] of tokens [B, S, M, channels]."""
    batch, _, heads, channels = tokens.shape
    _, queries, _, levels, points, _ = locations.shape
    if batch * queries == 0:  # grid_sample refuses empty batches
        return tokens.new_zeros(batch * heads, channels, queries, levels * points)
    grids = (2.0 * locations - 1.0).to(tokens.dtype).transpose(1, 2).flatten(0, 1)
    maps = tokens.permute(0, 2, 3, 1).flatten(0, 1)  # [B*M, channels, S]
    sampled, start = [], 0
    for level, (height, width) in enumerate(spatial_shapes):
        size = height * width
        plane = maps[..., start : start + size].reshape(-1, channels, height, width)
        grid = grids[:, :, level]  # [B*M, Q, P, 2]
        sampled.append(F.grid_sample(plane, grid, "bilinear", "zeros", align_corners=False))
        start += size
    return torch.cat(sampled, dim=-1)


def _head_major(tensor: Tensor) -> Tensor:
    """[B, Q, M, n] -> [B*M, Q, n]."""
    return tensor.transpose(1, 2).flatten(0, 1)


def _weighted_sum(samples: Tensor, weights: Tensor, heads: int) -> Tensor:
    """[B*M, D, Q, n] and [B*M, Q, n] -> [B, Q, M*D]."""
    attended = (samples * weights[:, None]).sum(-1)  # [B*M, D, Q]
    rows, channels, queries = attended.shape
    return attended.reshape(rows // heads, heads * channels, queries).transpose(1, 2)
