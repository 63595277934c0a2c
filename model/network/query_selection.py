"""Two-stage query selection: encoder tokens propose boxes, the best become decoder queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_BASE_SIDE = 0.05  # of the image: side of a finest level's proposal; doubles with each level
_INSIDE = (0.01, 0.99)  # proposals that leave this range are dropped


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """log(x / (1 - x)), with x and 1 - x at least `eps`."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def propose_boxes(
    padding_mask: Tensor, spatial_shapes: Sequence[tuple[int, int]], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """One proposal per token: its cell's centre and a side that grows with the level.

    Args:
        padding_mask: bool [B, S], True on padding.
        spatial_shapes: (H, W) of each level.
        dtype: floating type of the result.

    Returns:
        proposals [B, S, 4]: cxcywh, 0..1 of the unpadded image; valid bool [B, S]: False on padding
        and where a coordinate leaves (0.01, 0.99).
    """
    proposals, start = [], 0
    for level, (height, width) in enumerate(spatial_shapes):
        mask = padding_mask[:, start : start + height * width].view(-1, height, width)
        start += height * width
        valid_height = (~mask[:, :, 0]).sum(1).to(dtype)
        valid_width = (~mask[:, 0, :]).sum(1).to(dtype)
        y = (torch.arange(height, dtype=dtype, device=mask.device) + 0.5) / valid_height[:, None]
        x = (torch.arange(width, dtype=dtype, device=mask.device) + 0.5) / valid_width[:, None]
        centre_y = y[:, :, None].expand(-1, -1, width)
        centre_x = x[:, None, :].expand(-1, height, -1)
        side = torch.full_like(centre_x, _BASE_SIDE * 2.0**level)
        boxes = torch.stack((centre_x, centre_y, side, side), dim=-1)
        proposals.append(boxes.flatten(1, 2))
    boxes = torch.cat(proposals, dim=1)
    inside = ((boxes > _INSIDE[0]) & (boxes < _INSIDE[1])).all(-1)
    return boxes, inside & ~padding_mask


def proposal_logits(proposals: Tensor, valid: Tensor) -> Tensor:
    """[B, S, 4] proposals before the sigmoid; +inf where not `valid`, as the official code has."""
    logits = torch.log(proposals / (1 - proposals))
    return logits.masked_fill(~valid[..., None], float("inf"))


def demote_neighbours(
    scores: Tensor, invalid: Tensor, spatial_shapes: Sequence[tuple[int, int]], demotion: float
) -> Tensor:
    """Lowers the scores of tokens that are not the best of the 3 x 3 around them in their level.

    Args:
        scores: [B, T].
        invalid: bool [B, T], tokens that are no neighbours.
        spatial_shapes: (H, W) of each level.
        demotion: what is subtracted.

    Returns:
        [B, T]; tokens as good as the best of their neighbours keep their score.
    """
    hidden = scores.masked_fill(invalid, float("-inf"))
    peaks, start = [], 0
    for height, width in spatial_shapes:
        cells = hidden[:, start : start + height * width].view(-1, 1, height, width)
        start += height * width
        best = functional.max_pool2d(cells, kernel_size=3, stride=1, padding=1)
        peaks.append((cells >= best).flatten(1))
    return torch.where(torch.cat(peaks, dim=1), scores, scores - demotion)
