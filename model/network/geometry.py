"""What follows from the sizes of a batch: positions, reference points, proposals.

They depend on the padded shape and on how much of it each image fills, never on the pixels. So
inference on a CPU computes them once for each image size, and leaves the padding out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.network.position_encoding import DINO_CELLS, CellRule, encode_cells, write_cells
from model.network.query_selection import proposal_logits, propose_boxes

Shapes = tuple[tuple[int, int], ...]
_MAX_CACHED = 4  # image sizes; one of a full-size model holds about 20 MB
_MAX_CACHED_BATCH = 1  # images; larger batches have too many combinations of sizes


@dataclass(frozen=True)
class Geometry:
    """Everything about a batch's tokens but their content.

    S counts the tokens of the padded maps. T tokens go through encoder and decoder: all S, or in a
    `cropped` geometry those inside the image. Attention never samples padding, so leaving it out
    only saves time.

    Attributes:
        spatial_shapes: (H, W) of each level, of the T tokens.
        position: [B, T, d], sine encoding plus level embedding.
        padding: bool [B, T], True on padding; None: there is none.
        reference_points: [B, T, L, 2], the tokens' cells; see `cell_reference_points`.
        box_ratios: [B, 1, L, 4], unpadded share (w, h, w, h) of each level.
        query_ratios: [B, 1, 4], unpadded share of the finest padded level.
        valid_ratios: [B, L, 2], unpadded share (w, h) of each level; None as `padding`.
        kept: int64 [T], the tokens among the S; None: all.
        anchors: [B, S, 4], the box that each token proposes; see `propose_boxes`.
        invalid: bool [B, S], tokens that may not propose a box.
        proposal_logits: [B, S, 4], the anchors before the sigmoid.
    """

    spatial_shapes: Shapes
    position: Tensor
    padding: Tensor | None
    reference_points: Tensor
    box_ratios: Tensor
    query_ratios: Tensor
    valid_ratios: Tensor | None
    kept: Tensor | None
    anchors: Tensor
    invalid: Tensor
    proposal_logits: Tensor


def make_geometry(
    padding_mask: Tensor,
    shapes: Shapes,
    level_embed: Tensor,
    position_dtype: torch.dtype | None = None,
    cells: CellRule = DINO_CELLS,
) -> Geometry:
    """The geometry of a batch.

    Args:
        padding_mask: bool [B, H, W] of the images, True on padding (right and bottom).
        shapes: (H, W) of each level.
        level_embed: [L, d]; gives the floating type of all of it.
        position_dtype: another type of the positions, or None.
        cells: how positions are encoded.
    """
    dtype = level_embed.dtype
    level_masks = _level_masks(padding_mask, shapes)
    masks, ratios = [], []
    for mask in level_masks:
        masks.append(mask.flatten(1))
        height = (~mask[:, :, 0]).to(dtype).mean(1)
        width = (~mask[:, 0, :]).to(dtype).mean(1)
        ratios.append(torch.stack((width, height), dim=-1))
    padding, valid_ratios = torch.cat(masks, 1), torch.stack(ratios, 1)
    anchors, valid = propose_boxes(padding, shapes, dtype)
    box_ratios = valid_ratios.repeat(1, 1, 2)[:, None]
    return Geometry(
        spatial_shapes=shapes,
        position=_positions(level_masks, level_embed, position_dtype or dtype, cells),
        padding=padding,
        reference_points=cell_reference_points(shapes, valid_ratios),
        box_ratios=box_ratios,
        query_ratios=box_ratios[:, :, 0],
        valid_ratios=valid_ratios,
        kept=None,
        anchors=anchors,
        invalid=~valid,
        proposal_logits=proposal_logits(anchors, valid),
    )


def _positions(
    level_masks: Sequence[Tensor], level_embed: Tensor, dtype: torch.dtype, cells: CellRule
) -> Tensor:
    """Sine encodings plus level embeddings of all tokens, [B, S, d], in that type."""
    channels = level_embed.shape[-1]
    if torch.is_grad_enabled():
        encoded = [
            encode_cells(mask, channels, level_embed.dtype, cells).flatten(1, 2) + added
            for mask, added in zip(level_masks, level_embed, strict=True)
        ]
        return torch.cat(encoded, 1).to(dtype)
    sizes = [mask.shape[1] * mask.shape[2] for mask in level_masks]
    batch = len(level_masks[0])
    position = level_embed.new_empty(batch, sum(sizes), channels, dtype=dtype)
    parts = position.split(sizes, dim=1)  # type: ignore[no-untyped-call]
    for part, mask, added in zip(parts, level_masks, level_embed, strict=True):
        write_cells(part.view(*mask.shape, channels), mask, added, cells)
    return position


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


def cropped(geometry: Geometry, padding_mask: Tensor) -> Geometry:
    """The same without the tokens of padding, for one image.

    A level's map becomes its unpadded rectangle. Attention samples zeros outside a map, as it does
    on padding; the image's share of the smaller maps is 1.

    Args:
        geometry: of all tokens, on the CPU.
        padding_mask: bool [1, H, W] of the image, True on padding (right and bottom).
    """
    masks = _level_masks(padding_mask, geometry.spatial_shapes)
    shapes = tuple((int((~m[0, :, 0]).sum()), int((~m[0, 0]).sum())) for m in masks)
    kept = image_tokens(padding_mask, geometry.spatial_shapes)
    whole = torch.ones(1, len(shapes), 4)
    return replace(
        geometry,
        spatial_shapes=shapes,
        position=geometry.position[:, kept],
        padding=None,
        reference_points=cell_reference_points(shapes, whole[..., :2]),
        box_ratios=whole[:, None],
        valid_ratios=None,
        kept=None if shapes == geometry.spatial_shapes else kept,
    )


def image_tokens(padding_mask: Tensor, shapes: Shapes) -> Tensor:
    """Indices of the tokens inside the image: int64 [T], for a bool [1, H, W] padding mask."""
    masks = _level_masks(padding_mask, shapes)
    return (~torch.cat([mask.flatten() for mask in masks])).nonzero()[:, 0]


def _level_masks(padding_mask: Tensor, shapes: Shapes) -> list[Tensor]:
    """The padding of each level by nearest neighbour, bool [B, H, W]."""
    if torch.compiler.is_compiling():  # ONNX's Resize rounds otherwise for odd sizes
        height, width = padding_mask.shape[1:]
        return [
            padding_mask[:, nearest_cells(height, rows)][:, :, nearest_cells(width, columns)]
            for rows, columns in shapes
        ]
    exact = padding_mask[None].float()
    return [F.interpolate(exact, size=shape)[0].bool() for shape in shapes]


def nearest_cells(length: int, count: int) -> Tensor:
    """The cells that `interpolate` takes when it shrinks a side to `count`: int64 [count]."""
    ratio = np.float32(length) / np.float32(count)
    cells = np.floor(np.arange(count, dtype=np.float32) * ratio).astype(np.int64)
    return torch.from_numpy(cells.clip(max=length - 1))


class GeometryCache:
    """Geometries of the last few image sizes, for inference.

    Only one image on a CPU is cached: elsewhere, reading its size would wait for the device.

    Args:
        dtype: of the positions; all else keeps the type of the level embedding.
        cells: how positions are encoded.
    """

    def __init__(self, dtype: torch.dtype, cells: CellRule = DINO_CELLS) -> None:
        self._dtype = dtype
        self._cells = cells
        self._cached: OrderedDict[tuple[int, ...], Geometry] = OrderedDict()

    def get(self, padding_mask: Tensor, shapes: Shapes, level_embed: Tensor) -> Geometry:
        """The geometry of a batch (see `make_geometry`); one image on a CPU is `cropped`."""
        if padding_mask.device.type != "cpu" or len(padding_mask) > _MAX_CACHED_BATCH:
            return self._make(padding_mask, shapes, level_embed)
        key = (*padding_mask.shape, *_sizes(padding_mask))
        geometry = self._cached.pop(key, None)
        if geometry is None:
            whole = self._make(padding_mask, shapes, level_embed)
            geometry = cropped(whole, padding_mask)
        self._cached[key] = geometry
        if len(self._cached) > _MAX_CACHED:
            self._cached.popitem(last=False)
        return geometry

    def _make(self, padding_mask: Tensor, shapes: Shapes, level_embed: Tensor) -> Geometry:
        return make_geometry(padding_mask, shapes, level_embed, self._dtype, self._cells)


def _sizes(padding_mask: Tensor) -> Sequence[int]:
    """Heights, then widths, of the images in bool [B, H, W] masks on the CPU."""
    heights = (~padding_mask[:, :, 0]).sum(1)
    widths = (~padding_mask[:, 0, :]).sum(1)
    sizes: list[int] = torch.cat((heights, widths)).tolist()
    return sizes
