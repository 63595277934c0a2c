"""3x3 convolutions by Winograd's F(4x4, 3x3) (arXiv 1509.09308): maps to tiles and back.

    map --spread--> 36 planes of tiles --36 matrix products--> planes --gather--> map

A tile has 6x6 inputs and 4x4 outputs and takes a quarter of the multiplications. In float32 the
relative error is about 1e-6, a few times that of the plain sum; lower precisions would lose too
much. `spread` and `gather` are compiled (`csrc/winograd.cpp`), for CPUs only, without autograd.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from model.ops import cpu

POINTS = 36  # of a tile: the number of matrix products
CHANNELS = 16  # channels are a multiple of this
_OUT = 4  # a tile's side in the result
# The points are 0, _A, -_A, _B, -_B and infinity, as in csrc/winograd.cpp.
_A, _B = 0.5**0.5, 2**0.5
_TO_POINTS = (  # G of the paper: a kernel's line as a polynomial, at the points
    (1.0, 0.0, 0.0),
    *((-1 / 1.5, -point / 1.5, -point * point / 1.5) for point in (_A, -_A)),
    *((1 / 6, point / 6, point * point / 6) for point in (_B, -_B)),
    (0.0, 0.0, 1.0),
)


class _Winograd(ctypes.Structure):
    """Mirror of `Winograd` in csrc/winograd.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("map", "products", "bias")),
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels")),
        *((name, ctypes.c_int64) for name in ("relu", "threads")),
    )


def available() -> bool:
    """Whether `spread` and `gather` can be used here."""
    return cpu.available()


def count_tiles(height: int, width: int) -> int:
    """The number of tiles of a map."""
    return -(-height // _OUT) * -(-width // _OUT)


def kernels_at_points(weight: Tensor) -> Tensor:
    """[C', C, 3, 3] kernels -> the matrices of the 36 products, float64 [36, C', C]."""
    to_points = torch.tensor(_TO_POINTS, dtype=torch.float64)
    at_points = torch.einsum("ya,xb,oiab->yxoi", to_points, to_points, weight.double())
    return at_points.flatten(0, 1)


def spread(x: Tensor) -> Tensor:
    """Float32 [B, H, W, C] -> the 36 planes of its tiles, [36, B * tiles, C]."""
    x = x.contiguous()
    batch, height, width, channels = x.shape
    planes = x.new_empty(POINTS, batch * count_tiles(height, width), channels)
    problem = _Winograd(x.data_ptr(), None, None, *x.shape, 0, torch.get_num_threads())
    cpu.library().lite_detr_winograd_spread(ctypes.byref(problem), planes.data_ptr())
    return planes


def gather(
    planes: Sequence[Tensor], bias: Tensor, shape: tuple[int, int, int], *, relu: bool
) -> Tensor:
    """The map from the multiplied planes, plus bias.

    Args:
        planes: 36 of float32 [B * tiles, C], contiguous.
        bias: float32 [C].
        shape: (B, H, W) of the map.
        relu: whether to apply it to the result.

    Returns:
        [B, H, W, C].
    """
    channels = planes[0].shape[1]
    result = planes[0].new_empty(*shape, channels)
    pointers = (ctypes.c_void_p * POINTS)(*(plane.data_ptr() for plane in planes))
    problem = _Winograd(
        None,
        ctypes.addressof(pointers),
        bias.data_ptr(),
        *shape,
        channels,
        relu,
        torch.get_num_threads(),
    )
    cpu.library().lite_detr_winograd_gather(ctypes.byref(problem), result.data_ptr())
    return result
