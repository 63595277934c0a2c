"""oneDNN's fused products, which torch offers under private names only.

A fused product adds the residual or applies the activation while its result is still in the
cache. torch is pinned exactly; without these operators everything works, a little slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Literal["none", "relu", "relu6", "gelu"]

_POINTWISE: dict[Activation, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
    "gelu": ("gelu", [], "none"),
}
_OPERATORS = (
    "_linear_pointwise",
    "_reorder_linear_weight",
    "_convolution_pointwise_",
    "_is_mkldnn_bf16_supported",
)


class _Use:
    """Whether new inference forms may use the fused products, for the whole process."""

    allowed = True


@contextmanager
def not_used() -> Iterator[None]:
    """Inference forms that are created in this block consist of torch's public operators only."""
    before, _Use.allowed = _Use.allowed, False
    try:
        yield
    finally:
        _Use.allowed = before


def is_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the fused products work there; not every processor has them in bfloat16.

    Args:
        device: the device that computes.
        dtype: of the product; only float32 and bfloat16 have fused ones.
    """
    return (
        _Use.allowed
        and device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)
        and (
            dtype == torch.float32
            or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
        )
    )


def convolve_narrow_map(
    convolve: Callable[[Tensor], Tensor], x: Tensor, kernel: int, stride: int, padding: int
) -> Tensor:
    """convolve(x) where its result may be one pixel wide.

    oneDNN leaves parts of such a result unwritten, and of the gradient of its weights, if the
    convolution is strided and in bfloat16 (torch 2.13 on processors with AMX). Zero columns on the
    right give a second pixel, which is cut off.

    Args:
        convolve: a convolution padded with zeros.
        x: [B, C, H, W].
        kernel: its width.
        stride: horizontal.
        padding: zero columns on both sides.
    """
    is_narrow = stride > 1 and kernel > 1 and x.shape[-1] + 2 * padding < kernel + stride
    if not is_narrow or x.device.type != "cpu" or not _computes_in_bfloat16(x):
        return convolve(x)
    return convolve(F.pad(x, (0, stride)))[..., :1]


def _computes_in_bfloat16(x: Tensor) -> bool:
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == torch.bfloat16


def pack_linear(weight: Tensor) -> Tensor:
    """[outputs, inputs] weights in oneDNN's own layout."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return packed


def linear(x: Tensor, packed: Tensor, bias: Tensor, activation: Activation) -> Tensor:
    """activation(x W^T + b), with a weight of `pack_linear`."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, *_POINTWISE[activation])
    return product


def linear_add(x: Tensor, packed: Tensor, bias: Tensor, add: Tensor) -> Tensor:
    """X W^T + b + add, with a weight of `pack_linear`."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, add, packed, bias, "add")
    return product


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor, geometry: tuple[Any, ...], activation: Activation
) -> Tensor:
    """activation(conv(x) + b).

    Args:
        x: [B, C, H, W], channels last.
        weight: [C', C / groups, h, w].
        bias: [C'].
        geometry: padding, stride, dilation and groups.
        activation: applied to the result.
    """
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, *geometry, *_POINTWISE[activation]
    )
    return result


def convolve_add_(  # noqa: PLR0913, PLR0917 - an operator's arguments
    add: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    geometry: tuple[Any, ...],
    activation: Activation,
) -> Tensor:
    """activation(conv(x) + b + add), written into `add`; for the others see `convolve`."""
    unary, scalars, algorithm = _POINTWISE[activation]
    result: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
        add,
        x,
        weight,
        bias,
        *geometry,
        "add",
        1.0,
        None if unary == "none" else unary,
        scalars,
        algorithm,
    )
    return result
