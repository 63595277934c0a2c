"""Backbones for inference: every normalisation folded into its convolution, once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.inference.layers import Activation, Convolution
from model.inference.winograd import WinogradConvolution, winograd_takes
from model.network.backbone.efficientnet import TAPS, EfficientNetLite0, InvertedBottleneck
from model.network.backbone.norm import FrozenBatchNorm
from model.network.backbone.resnet import BasicBlock, Bottleneck, ResNet

Maps = tuple[Tensor, Tensor, Tensor]


def fold_backbone(body: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same maps from the same images, in `dtype` and channels last.

    Raises:
        TypeError: for a backbone that this room does not know.
    """
    if isinstance(body, ResNet):
        return _FoldedResNet(body, dtype)
    if isinstance(body, EfficientNetLite0):
        return _FoldedEfficientNet(body, dtype)
    raise TypeError(f"no inference form of {type(body).__name__}")


def _fold(
    layer: nn.Module,
    norm: nn.Module,
    dtype: torch.dtype,
    activation: Activation = "none",
    *,
    residual: bool = False,
) -> nn.Module:
    """norm(layer(x)) as one convolution, folded in float64."""
    assert isinstance(layer, nn.Conv2d) and isinstance(norm, FrozenBatchNorm)
    exact = {
        name: getattr(norm, name).detach().double()
        for name in ("weight", "bias", "running_mean", "running_var")
    }
    scale = exact["weight"] / (exact["running_var"] + norm.eps).sqrt()
    shift = exact["bias"] - exact["running_mean"] * scale
    folded = {"scale": scale, "shift": shift}
    convolution = Convolution(layer, dtype, **folded, activation=activation, residual=residual)
    if not residual and activation != "relu6" and winograd_takes(layer, dtype):
        return WinogradConvolution(convolution)
    return convolution


class _FoldedBlock(nn.Module):
    """A residual block of either kind; the sum and its ReLU belong to the last convolution."""

    def __init__(self, block: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        assert isinstance(block, BasicBlock | Bottleneck)
        count = 3 if isinstance(block, Bottleneck) else 2
        names = [(f"conv{index}", f"bn{index}") for index in range(1, count + 1)]
        self.convolutions = nn.ModuleList(
            _fold(
                getattr(block, conv), getattr(block, norm), dtype, "relu", residual=index == count
            )
            for index, (conv, norm) in enumerate(names, start=1)
        )
        shortcut = block.downsample
        self.shortcut = None if shortcut is None else _fold(shortcut[0], shortcut[1], dtype)

    def forward(self, x: Tensor) -> Tensor:
        """As the block; where there is no shortcut of its own, `x` becomes the result."""
        residual = x if self.shortcut is None else self.shortcut(x)
        for convolution in self.convolutions[:-1]:
            x = convolution(x)
        return self.convolutions[-1](x, residual)  # type: ignore[no-any-return]


class _FoldedResNet(nn.Module):
    """The stages of a `ResNet`."""

    def __init__(self, body: ResNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.stem = _fold(body.conv1, body.bn1, dtype, "relu")
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    _FoldedBlock(block, dtype)
                    for block in body.get_submodule(f"layer{index}").children()
                )
            )
            for index in range(1, 5)
        )

    def forward(self, images: Tensor) -> Maps:
        """[B, 3, H, W] -> maps of strides 8, 16, 32."""
        x = F.max_pool2d(self.stem(images), 3, 2, padding=1)
        maps = []
        for stage in self.stages:
            # A stage's first block makes its own residual, so the map before it stays whole.
            x = stage(x)
            maps.append(x)
        return maps[1], maps[2], maps[3]


class _FoldedInverted(nn.Module):
    """An inverted bottleneck."""

    def __init__(self, block: InvertedBottleneck, dtype: torch.dtype) -> None:
        super().__init__()
        layers = []
        if block.expand_conv is not None:
            layers.append(_fold(block.expand_conv, block.bn0, dtype, "relu6"))
        layers.append(_fold(block.depthwise_conv, block.bn1, dtype, "relu6"))
        self.layers = nn.Sequential(*layers)
        self.project = _fold(block.project_conv, block.bn2, dtype, residual=block.residual)
        self.residual = block.residual

    def forward(self, x: Tensor) -> Tensor:
        """As the block; with a residual, `x` becomes the result."""
        return self.project(self.layers(x), x if self.residual else None)  # type: ignore[no-any-return]


class _FoldedEfficientNet(nn.Module):
    """The blocks of an `EfficientNetLite0`."""

    def __init__(self, body: EfficientNetLite0, dtype: torch.dtype) -> None:
        super().__init__()
        self.stem = _fold(body.conv_stem, body.bn0, dtype, "relu6")
        self.blocks = nn.ModuleList(
            _FoldedInverted(block, dtype)  # type: ignore[arg-type]
            for block in body.blocks
        )

    def forward(self, images: Tensor) -> Maps:
        """[B, 3, H, W] -> maps of strides 8, 16, 32."""
        x = self.stem(images)
        maps = []
        for index, block in enumerate(self.blocks):
            # No block after a tap has a residual, so the map stays whole.
            x = block(x)
            if index in TAPS:
                maps.append(x)
        stride_8, stride_16, stride_32 = maps
        return stride_8, stride_16, stride_32
