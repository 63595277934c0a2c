"""Sine position encodings: of feature-map cells (encoder) and of boxes (decoder)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class CellRule(NamedTuple):
    """How a detector encodes the cells of feature maps."""

    temperature: float = 20.0  # of the sines
    offset: float = 0.0  # in cells, subtracted before normalising


DINO_CELLS = CellRule()
_BOX_TEMPERATURE = 10000.0
_EPS = 1e-6


# In inference mode, what depends on no input, by its arguments: few, and each takes many kernels.
_constants: dict[tuple[object, ...], Tensor] = {}


def known_constants() -> list[Tensor]:
    """What the encodings have computed once for later calls in inference mode."""
    return list(_constants.values())


def _constant(key: tuple[object, ...], like: Tensor, compute: Callable[[], Tensor]) -> Tensor:
    """A constant with the type and device of `like`; in inference mode computed once."""
    if not torch.is_inference_mode_enabled() or type(like) is not Tensor:
        return compute()
    key = (*key, like.dtype, like.device)
    known = _constants.get(key)
    if known is None:
        known = _constants[key] = compute()
    return known


def _frequencies(features: int, temperature: float, like: Tensor) -> Tensor:
    """The divisors of an encoding's angles: [features]."""
    key = ("frequencies", features, temperature)
    return _constant(key, like, lambda: _computed_frequencies(features, temperature, like))


def _computed_frequencies(features: int, temperature: float, like: Tensor) -> Tensor:
    index = torch.arange(features, dtype=like.dtype, device=like.device)
    exponent = 2 * torch.div(index, 2, rounding_mode="floor") / features
    # Filled on the device: a copy from the host would make a GPU wait.
    return torch.full((), temperature, dtype=like.dtype, device=like.device) ** exponent


def _interleaved_sine(angles: Tensor) -> Tensor:
    """[..., F] angles: sine of the even features, cosine of the odd ones."""
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def encode_cells(
    padding_mask: Tensor,
    d_model: int,
    dtype: torch.dtype,
    rule: CellRule = DINO_CELLS,
) -> Tensor:
    """Position of every cell of a feature map, normalised by its valid size.

    Angles, sines and cosines are computed per row and per column, then combined for the cells.

    Args:
        padding_mask: bool [B, H, W], True on padding, which is right and bottom.
        d_model: features of a cell; half for y, half for x.
        dtype: floating type of the result.
        rule: of the detector.

    Returns:
        [B, H, W, d_model], y features first. To the right of an image y is that of an image
        without height, below it x is that of an image without width.
    """
    rows, columns = ~padding_mask[:, :, 0], ~padding_mask[:, 0, :]
    y, x, zero = _encode_axes(rows, columns, d_model // 2, dtype, rule)
    y = torch.where(columns[:, None, :, None], y[:, :, None], zero)
    x = torch.where(rows[:, :, None, None], x[:, None], zero)
    return torch.cat((y, x), dim=-1)


def write_cells(
    cells: Tensor, padding_mask: Tensor, added: Tensor, rule: CellRule = DINO_CELLS
) -> None:
    """Writes `encode_cells` + `added`, rounded to the type of `cells`, in one pass over them.

    Args:
        cells: [B, H, W, d_model], overwritten.
        padding_mask: see `encode_cells`.
        added: [d_model]; gives the type of the sum.
        rule: see `encode_cells`.
    """
    features = cells.shape[-1] // 2
    rows, columns = ~padding_mask[:, :, 0], ~padding_mask[:, 0, :]
    y, x, zero = _encode_axes(rows, columns, features, added.dtype, rule)
    for half, inside, place in (
        (0, columns[:, None, :], y[:, :, None]),
        (1, rows[..., None], x[:, None]),
    ):
        part = slice(half * features, (half + 1) * features)
        encoded, outside = ((each + added[part]).to(cells.dtype) for each in (place, zero))
        torch.where(inside[..., None], encoded, outside, out=cells[..., part])


def _encode_axes(
    rows: Tensor, columns: Tensor, features: int, dtype: torch.dtype, rule: CellRule
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of rows [B, H, features] and columns [B, W, features], and of none [features]."""
    valid_rows, valid_columns = rows.to(dtype), columns.to(dtype)
    y, x = (_encode_axis(valid, features, rule) for valid in (valid_rows, valid_columns))

    def outside() -> Tensor:
        # In float32, as in the official code: with an offset its angles are too large for equal
        # sines.
        nothing = torch.zeros(1, 1, device=rows.device)
        return _encode_axis(nothing, features, rule)[0, 0].to(dtype)

    return y, x, _constant(("outside", features, rule), valid_rows, outside)


def _encode_axis(valid: Tensor, features: int, rule: CellRule) -> Tensor:
    """Positions along one axis, [B, N] with 1 inside the image: [B, N, features]."""
    place = valid.cumsum(1)
    place = (place - rule.offset) / (place[:, -1:] + _EPS) * (2 * math.pi)
    return _interleaved_sine(place[..., None] / _frequencies(features, rule.temperature, valid))


def encode_boxes(boxes: Tensor, d_model: int) -> Tensor:
    """Sine embedding of boxes (temperature 10000), in the order y, x, w, h.

    Args:
        boxes: [..., 4] cxcywh, 0..1.
        d_model: each coordinate gets d_model / 2 features.

    Returns:
        [..., 2 * d_model].
    """
    # Not indexed by a list, which would be copied to a GPU each time.
    y_x_w_h = torch.cat((boxes[..., 1:2], boxes[..., :1], boxes[..., 2:]), -1)
    return encode_proposals(y_x_w_h, d_model)


def box_frequencies(d_model: int, like: Tensor) -> Tensor:
    """By what the angles of an encoded coordinate are divided: [d_model / 2], as `like`."""
    return _frequencies(d_model // 2, _BOX_TEMPERATURE, like)


def encode_proposals(boxes: Tensor, d_model: int) -> Tensor:
    """As `encode_boxes`, in the order of the coordinates (Deformable DETR's x, y, w, h)."""
    frequencies = box_frequencies(d_model, boxes)
    return _interleaved_sine((boxes * (2 * math.pi))[..., None] / frequencies).flatten(-2)
