"""What the network knows from sizes alone: made once for a batch's sizes, then remembered.

Positions, reference points and proposals depend on the padded shape and on how much of it each
image fills, and on nothing that is in the images.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from model.network.encoder import cell_reference_points
from model.network.position_encoding import encode_cells
from model.network.query_selection import proposal_logits, propose_boxes

Shapes = tuple[tuple[int, int], ...]
_KEPT = 4  # sizes that are remembered; one of a full-size model holds about 20 MB
_MOST_KEPT_IMAGES = 1  # larger batches are of too many combinations of sizes


@dataclass(frozen=True)
class Geometry:
    """Everything about a batch's tokens but their content.

    T tokens go through the stacks: all S of the padded maps, or where padding is `cropped` those of
    the image alone. Nothing ever looks at padding, so leaving it out only saves time.

    Attributes:
        spatial_shapes: (H, W) of each level, of the T tokens.
        position: [B, T, d], sine encoding plus level embedding, in the network's type.
        padding: bool [B, T], True on padding; None: there is none.
        reference_points: float32 [B, T, L, 2].
        box_ratios: float32 [B, 1, L, 4], unpadded share of each level, for boxes.
        query_ratios: float32 [B, 1, 4], unpadded share of the finest padded level.
        kept: int64 [T], the tokens among the S; None: they are all.
        invalid: bool [B, S], tokens that may not propose a box.
        proposal_logits: float32 [B, S, 4].
    """

    spatial_shapes: Shapes
    position: Tensor
    padding: Tensor | None
    reference_points: Tensor
    box_ratios: Tensor
    query_ratios: Tensor
    kept: Tensor | None
    invalid: Tensor
    proposal_logits: Tensor


def make_geometry(padding_mask: Tensor, shapes: Shapes, level_embed: Tensor) -> Geometry:
    """The geometry of a batch.

    Args:
        padding_mask: bool [B, H, W] of the images, True on padding (right and bottom).
        shapes: (H, W) of each level.
        level_embed: float32 [L, d].

    Returns:
        All of it in float32.
    """
    positions, masks, ratios = [], [], []
    for index, mask in enumerate(_level_masks(padding_mask, shapes)):
        position = encode_cells(mask, level_embed.shape[-1], torch.float32)
        positions.append(position.flatten(1, 2) + level_embed[index])
        masks.append(mask.flatten(1))
        height = (~mask[:, :, 0]).float().mean(1)
        width = (~mask[:, 0, :]).float().mean(1)
        ratios.append(torch.stack((width, height), dim=-1))
    padding, valid_ratios = torch.cat(masks, 1), torch.stack(ratios, 1)
    anchors, valid = propose_boxes(padding, shapes, torch.float32)
    box_ratios = valid_ratios.repeat(1, 1, 2)[:, None]
    return Geometry(
        spatial_shapes=shapes,
        position=torch.cat(positions, 1),
        padding=padding,
        reference_points=cell_reference_points(shapes, valid_ratios),
        box_ratios=box_ratios,
        query_ratios=box_ratios[:, :, 0],
        kept=None,
        invalid=~valid,
        proposal_logits=proposal_logits(anchors, valid),
    )


def cropped(geometry: Geometry, padding_mask: Tensor) -> Geometry:
    """The same without the tokens of padding, for one image.

    A level's map becomes its unpadded rectangle. What is outside of a map is zero to attention, as
    padding is; in the smaller maps the image's share is 1.

    Args:
        geometry: of all tokens, on the CPU.
        padding_mask: bool [1, H, W] of the image, True on padding (right and bottom).
    """
    masks = _level_masks(padding_mask, geometry.spatial_shapes)
    shapes = tuple((int((~m[0, :, 0]).sum()), int((~m[0, 0]).sum())) for m in masks)
    kept = real_tokens(padding_mask, geometry.spatial_shapes)
    whole = torch.ones(1, len(shapes), 4)
    return replace(
        geometry,
        spatial_shapes=shapes,
        position=geometry.position[:, kept],
        padding=None,
        reference_points=cell_reference_points(shapes, whole[..., :2]),
        box_ratios=whole[:, None],
        kept=None if shapes == geometry.spatial_shapes else kept,
    )


def real_tokens(padding_mask: Tensor, shapes: Shapes) -> Tensor:
    """Which tokens of bool [1, H, W] padding are the image's: int64 [T]."""
    masks = _level_masks(padding_mask, shapes)
    return (~torch.cat([mask.flatten() for mask in masks])).nonzero()[:, 0]


def _level_masks(padding_mask: Tensor, shapes: Shapes) -> list[Tensor]:
    """The padding of each level, bool [B, H, W]."""
    exact = padding_mask[None].float()
    return [F.interpolate(exact, size=shape)[0].bool() for shape in shapes]


class GeometryCache:
    """Geometries of the sizes seen last.

    On a CPU alone: elsewhere reading the sizes would wait for the device.

    Args:
        level_embed: float32 [L, d].
        dtype: of the positions.
    """

    def __init__(self, level_embed: Tensor, dtype: torch.dtype) -> None:
        self._level_embed = level_embed
        self._dtype = dtype
        self._kept: OrderedDict[tuple[int, ...], Geometry] = OrderedDict()

    def of(self, padding_mask: Tensor, shapes: Shapes) -> Geometry:
        """The geometry of a batch; see `make_geometry`. One image on a CPU is `cropped`."""
        if padding_mask.device.type != "cpu" or len(padding_mask) > _MOST_KEPT_IMAGES:
            return self._make(padding_mask, shapes)
        key = (*padding_mask.shape, *_sizes(padding_mask))
        found = self._kept.pop(key, None)
        if found is None:
            found = cropped(self._make(padding_mask, shapes), padding_mask)
        self._kept[key] = found
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return found

    def _make(self, padding_mask: Tensor, shapes: Shapes) -> Geometry:
        made = make_geometry(padding_mask, shapes, self._level_embed)
        return replace(made, position=made.position.to(self._dtype))


def _sizes(padding_mask: Tensor) -> Sequence[int]:
    """Heights, then widths, of the images in bool [B, H, W] masks on the CPU."""
    heights = (~padding_mask[:, :, 0]).sum(1)
    widths = (~padding_mask[:, 0, :]).sum(1)
    sizes: list[int] = torch.cat((heights, widths)).tolist()
    return sizes
