"""Strided convolutions in bfloat16 whose result is one pixel wide: oneDNN leaves parts unwritten.

With AMX these tests failed in torch 2.13; other processors compute such maps rightly anyway.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import VARIANTS
from model.network.convolution import FoldedConvolution, FrozenBatchNorm, conv_bn
from model.network.levels import InputProjection, input_projections


def _fill_freed_memory() -> None:
    """Results that are not written become NaN."""
    for power in range(10, 21, 2):
        for _ in range(4):
            torch.full((1 << power,), torch.nan)


def _convolution() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False)


def _map(width: int) -> Tensor:
    return torch.randn(2, 64, 10, width).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_narrow_map_of_a_training_convolution_and_its_gradients(width: int) -> None:
    conv, norm = _convolution(), FrozenBatchNorm(64)
    x, weight = _map(width), conv.weight
    expected = conv_bn(x, conv, norm)
    grad = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, weight, grad)
    _fill_freed_memory()
    with torch.autocast("cpu", torch.bfloat16):
        found = conv_bn(x, conv, norm)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    _fill_freed_memory()
    (gradient,) = torch.autograd.grad(found, weight, grad.bfloat16())
    torch.testing.assert_close(gradient, wanted, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("width", [1, 2, 3])
def test_narrow_map_of_a_folded_convolution(width: int) -> None:
    conv, x = _convolution(), _map(width)
    folded = FoldedConvolution(conv, conv.weight, torch.zeros(64), torch.bfloat16, adds=False)
    _fill_freed_memory()
    with torch.inference_mode():
        found = folded(x.bfloat16(), activation="relu")
    torch.testing.assert_close(found.float(), F.relu(conv(x)), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("width", [1, 2])
def test_narrow_map_of_the_coarsest_level(width: int) -> None:
    torch.manual_seed(0)
    config = replace(VARIANTS["lite-dino-efficientnet-lite0"], d_model=64)
    projection = input_projections((64, 64, 64), config)[-1]
    assert isinstance(projection, InputProjection)
    x = _map(width)
    expected = projection(x)
    _fill_freed_memory()
    with torch.autocast("cpu", torch.bfloat16):
        found = projection(x)
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
