from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.network.position_encoding import encode_boxes, encode_cells


def _cell_by_cell(padding_mask: Tensor, d_model: int, dtype: torch.dtype) -> Tensor:
    """DINO's own order: sums over the mask, then sine and cosine of every cell."""
    valid = (~padding_mask).to(dtype)
    angles = []
    for axis in (1, 2):
        place = valid.cumsum(axis)
        whole = place.narrow(axis, place.shape[axis] - 1, 1)
        angles.append(place / (whole + 1e-6) * (2 * math.pi))
    index = torch.arange(d_model // 2, dtype=dtype)
    exponent = 2 * torch.div(index, 2, rounding_mode="floor") / (d_model // 2)
    frequencies = torch.tensor(20.0, dtype=dtype) ** exponent
    parts = [angle[..., None] / frequencies for angle in angles]
    waves = [torch.stack((p[..., 0::2].sin(), p[..., 1::2].cos()), -1).flatten(-2) for p in parts]
    return torch.cat(waves, -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_cells_have_to_the_bit_the_positions_of_sums_over_the_mask(dtype: torch.dtype) -> None:
    mask = torch.ones(4, 9, 13, dtype=torch.bool)
    for index, (height, width) in enumerate([(9, 13), (5, 7), (1, 13), (9, 1)]):
        mask[index, :height, :width] = False
    expected = _cell_by_cell(mask, 32, dtype)
    assert torch.equal(encode_cells(mask, 32, dtype), expected)


def test_boxes_are_encoded_as_y_x_w_h() -> None:
    boxes = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0))
    swapped = boxes[..., [1, 0, 2, 3]]
    encoded, other = encode_boxes(boxes, 16), encode_boxes(swapped, 16)
    assert encoded.shape == (2, 5, 32)
    assert torch.equal(encoded[..., :8], other[..., 8:16])
    assert torch.equal(encoded[..., 16:], other[..., 16:])
