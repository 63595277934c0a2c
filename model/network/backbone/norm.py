"""Batch normalisation with frozen statistics, folded into the convolution before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FrozenBatchNorm(nn.Module):
    """Batch normalisation whose statistics never change.

    Args:
        channels: of the map.
        eps: added to the variance inside the root.
        trainable: weight and bias learn (backbones fine-tuned here); otherwise they are buffers,
            as in DETR.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, *, trainable: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight: Tensor
        self.bias: Tensor
        if trainable:
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
        else:
            self.register_buffer("weight", torch.ones(channels))
            self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))


def conv_bn(x: Tensor, conv: nn.Conv2d, norm: FrozenBatchNorm) -> Tensor:
    """norm(conv(x)), as one convolution: the normalisation is folded into weight and bias.

    Args:
        x: [B, C, H, W].
        conv: a convolution without bias.
        norm: frozen normalisation of its output.

    Returns:
        [B, C', H', W'].
    """
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return nn.functional.conv2d(
        x,
        conv.weight * scale[:, None, None, None],
        shift,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )
