"""Inputs and a baseline for timings of deformable attention.

The inputs have the sizes that the models use. The baseline is the formula of the published code:
one `grid_sample` per level for the values and, if key-aware, a second one for the keys, both kept
whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from model import ops

# An image of 800 x 1333 pixels at strides 8 to 64, and a training batch of 320 x 320 ones.
PHOTO = ((100, 167), (50, 84), (25, 42), (13, 21))
TRAINING = ((40, 40), (20, 20), (10, 10), (5, 5))
POINTS = 4


@dataclass(frozen=True)
class Workload:
    """An operation and its sizes."""

    name: str
    key_aware: bool
    spatial_shapes: tuple[tuple[int, int], ...]
    batch: int
    heads: int
    queries: int  # the last tokens are the queries; 900: boxes of the decoder
    training: bool = False  # forward and backward
    channels: int = 32  # of a head


@dataclass(frozen=True)
class Inputs:
    """Tensors of one workload, shaped for `model.ops`."""

    value: Tensor
    reference_points: Tensor
    sampling_offsets: Tensor
    query: Tensor
    logits: Tensor


DECODER_QUERIES = 900


def official_formula(workload: Workload, inputs: Inputs) -> Tensor:
    """The published formula: normalised positions, `grid_sample` per level, weighted sum."""
    levels = len(workload.spatial_shapes)
    if inputs.reference_points.shape[-1] == 4:  # noqa: PLR2004 - cxcywh
        centres, sizes = inputs.reference_points[..., :2], inputs.reference_points[..., 2:]
        steps = inputs.sampling_offsets / POINTS * sizes[:, :, None, :, None] * 0.5
        locations = centres[:, :, None, :, None] + steps
    else:
        offsets = inputs.sampling_offsets
        steps = offsets / level_sizes(workload.spatial_shapes, offsets)[:, None]
        locations = inputs.reference_points[:, :, None, :, None] + steps
    heads = (workload.batch * workload.heads, 1, workload.queries, levels * POINTS)
    values = _sampled(workload, inputs.value, locations)  # [B*M, D, Q, L*P]
    if workload.key_aware:
        keys = _sampled(workload, inputs.value, locations)
        queries = inputs.query.transpose(1, 2).flatten(0, 1)  # [B*M, Q, D]
        scores = torch.einsum("bqd,bdqp->bqp", queries, keys) * workload.channels**-0.5
        weights = scores.softmax(-1).reshape(heads)
    else:
        weights = inputs.logits.softmax(-1).transpose(1, 2).reshape(heads)
    attended: Tensor = (values * weights).sum(-1)
    width = workload.heads * workload.channels
    return attended.view(workload.batch, width, workload.queries).transpose(1, 2).contiguous()


def level_sizes(spatial_shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(width, height) of each level, [L, 2], with the type and device of `like`.

    Copied from the host once: a CUDA graph cannot record such a copy, so what it records has to run
    before.
    """
    return _level_sizes(tuple(spatial_shapes), like.dtype, like.device)


@lru_cache(maxsize=16)
def _level_sizes(
    spatial_shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    sides = [[width, height] for height, width in spatial_shapes]
    with torch.inference_mode(False):  # also for calls with gradients
        return torch.tensor(sides, dtype=dtype, device=device)


def _sampled(workload: Workload, tokens: Tensor, locations: Tensor) -> Tensor:
    grids = 2.0 * locations - 1.0
    areas = [height * width for height, width in workload.spatial_shapes]
    sampled = []
    for level, part in enumerate(tokens.split(areas, dim=1)):  # type: ignore[no-untyped-call]
        plane = part.flatten(2).transpose(1, 2)
        plane = plane.reshape(-1, workload.channels, *workload.spatial_shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        grid = grid.to(plane.dtype)
        sampled.append(F.grid_sample(plane, grid, "bilinear", "zeros", align_corners=False))
    return torch.stack(sampled, dim=-2).flatten(-2)


def compiled_kernels(workload: Workload, inputs: Inputs) -> Tensor:
    """The same with `model.ops`."""
    located = (workload.spatial_shapes, inputs.reference_points, inputs.sampling_offsets)
    if workload.key_aware:
        return ops.key_aware_deform_attn(inputs.query, None, inputs.value, *located)
    return ops.ms_deform_attn(inputs.value, *located, inputs.logits)


def random_inputs(workload: Workload) -> Inputs:
    """Encoder queries sample around their own token, decoder queries in boxes anywhere."""
    generator = torch.Generator().manual_seed(0)
    levels = len(workload.spatial_shapes)
    size = (workload.batch, workload.queries, workload.heads)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_(workload.training)

    if workload.queries == DECODER_QUERIES:
        boxes = torch.rand(workload.batch, workload.queries, 1, 4, generator=generator)
        references = boxes.repeat(1, 1, levels, 1)
    else:
        centres = torch.cat([_pixel_centres(*shape) for shape in workload.spatial_shapes])
        own = centres[-workload.queries :, None].expand(-1, levels, -1)
        references = own.expand(workload.batch, -1, -1, -1).contiguous()
    tokens = sum(height * width for height, width in workload.spatial_shapes)
    return Inputs(
        value=normal(workload.batch, tokens, workload.heads, workload.channels),
        reference_points=references,
        sampling_offsets=normal(*size, levels, POINTS, 2),
        query=normal(*size, workload.channels),
        logits=normal(*size, levels * POINTS),
    )


def _pixel_centres(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return torch.stack((x, y), dim=-1).flatten(0, 1)


def cast(inputs: Inputs, dtype: torch.dtype, device: torch.device | str) -> Inputs:
    """The inputs on a device in a type; reference points stay float32, as in the network."""
    moved = {}
    for field in fields(inputs):
        tensor = getattr(inputs, field.name)
        kept = torch.float32 if field.name == "reference_points" else dtype
        moved[field.name] = tensor.to(device, kept)
    return replace(inputs, **moved)
