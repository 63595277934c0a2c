"""Fused products of NVIDIA GPUs (cuDNN, cuBLASLt), which torch offers as operators of their own.

A fused product adds bias and residual and applies the activation to its sums before it writes them;
otherwise each is a pass over the result of its own. cuDNN has fused convolutions for 16-bit types.
Measured on no GPU yet; `benchmarks/gpu/roofline.py` counts what they save.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from model.network.onednn import Activation

Operator = Literal["cudnn_convolution_relu", "cudnn_convolution_add_relu", "_addmm_activation"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)
_CONVOLVED = (torch.float16, torch.bfloat16)
_MULTIPLIED = (*_CONVOLVED, torch.float32)
_RELU6_MAX = 6.0


class _State:
    """Which operators are used, for the whole process."""

    enabled: frozenset[Operator] = frozenset(OPERATORS)


def can_convolve(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `convolve` may work on that device."""
    has_cudnn: bool = torch.backends.cudnn.is_available()  # type: ignore[no-untyped-call]
    return dtype in _CONVOLVED and _is_available(device) and has_cudnn


def can_multiply(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `linear` works on that device."""
    return dtype in _MULTIPLIED and _is_available(device)


def _is_available(device: torch.device) -> bool:
    return device.type == "cuda" and all(hasattr(torch, name) for name in OPERATORS)


def enabled() -> frozenset[Operator]:
    """The operators that layers use where they can."""
    return _State.enabled


def is_enabled(operator: Operator | None = None) -> bool:
    """Whether layers use that operator where they can; without one, whether they use any."""
    return bool(_State.enabled) if operator is None else operator in _State.enabled


def disable(operator: Operator, reason: str) -> None:
    """Stops the use of an operator in this process, with a warning."""
    _State.enabled -= {operator}
    warnings.warn(
        f"the GPU computes without the fused {operator}: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )


@contextmanager
def disabled(*operators: Operator) -> Iterator[None]:
    """Context without these operators (without names: without any), to compare results."""
    before, _State.enabled = _State.enabled, _State.enabled.difference(operators or OPERATORS)
    try:
        yield
    finally:
        _State.enabled = before


def operator_for(add: Tensor | None) -> Operator:
    """The operator of `convolve`."""
    return "cudnn_convolution_relu" if add is None else "cudnn_convolution_add_relu"


def linear(x: Tensor, weight: Tensor, bias: Tensor, activation: Activation = "none") -> Tensor:
    """activation(x W^T + b).

    Args:
        x: [..., inputs].
        weight: [outputs, inputs].
        bias: [outputs].
        activation: applied to the result.

    Returns:
        [..., outputs], contiguous.
    """
    rows = x.reshape(-1, x.shape[-1])
    if activation in ("none", "gelu"):
        product = torch.addmm(bias, rows, weight.t())
        if activation == "gelu":  # cuBLASLt fuses only its approximation by tanh
            product = F.gelu(product)
    else:
        product = torch._addmm_activation(bias, rows, weight.t())
        if activation == "relu6":
            product.clamp_(max=_RELU6_MAX)
    return product.view(*x.shape[:-1], -1)


def convolve(  # noqa: PLR0913, PLR0917 - an operator's arguments
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    add: Tensor | None,
    geometry: tuple[Any, ...],
    activation: Activation,
) -> Tensor:
    """activation(conv(x) + b + add).

    Args:
        x: [B, C, H, W], channels last.
        weight: [C', C, h, w], channels last.
        bias: [C'].
        add: [B, C', H', W'], channels last, or None.
        geometry: padding, stride, dilation and groups.
        activation: "relu", or "relu6" without something to add.

    Raises:
        RuntimeError: if cuDNN has no fused convolution for these sizes.
    """
    padding, stride, dilation, groups = geometry
    if add is not None:
        assert activation == "relu"
        return torch.cudnn_convolution_add_relu(
            x, weight, add, 1.0, bias, stride, padding, dilation, groups
        )
    result = torch.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, groups)
    return result.clamp_(max=_RELU6_MAX) if activation == "relu6" else result
