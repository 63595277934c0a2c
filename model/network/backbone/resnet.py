"""ResNet-18 and ResNet-50 with torchvision's parameter names and frozen normalisation."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from model.network.backbone.base import Backbone, Maps
from model.network.convolution import FrozenBatchNorm, conv_bn, fold, move_bias


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class _Downsample(nn.Sequential):
    """1x1 convolution and normalisation on the shortcut (names `0` and `1`)."""

    def forward(self, x: Tensor) -> Tensor:
        return conv_bn(x, self[0], self[1])


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1: nn.Module = _conv(inputs, width, 3, stride)
        self.bn1: nn.Module | None = FrozenBatchNorm(width)
        self.conv2: nn.Module = _conv(width, width, 3)
        self.bn2: nn.Module | None = FrozenBatchNorm(width)
        self.downsample = _shortcut(inputs, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = conv_bn(x, self.conv1, self.bn1, "relu")
        return conv_bn(x, self.conv2, self.bn2, "relu", shortcut)

    def inference_form(self, dtype: torch.dtype) -> BasicBlock:
        """See `model.network.inference`."""
        self.conv1, self.bn1 = fold(self.conv1, self.bn1, dtype), None
        self.conv2, self.bn2 = fold(self.conv2, self.bn2, dtype, adds=True), None
        self.downsample = _folded(self.downsample, self.conv2, dtype)
        return self


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 convolutions (ResNet-50)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1: nn.Module = _conv(inputs, width, 1)
        self.bn1: nn.Module | None = FrozenBatchNorm(width)
        self.conv2: nn.Module = _conv(width, width, 3, stride)
        self.bn2: nn.Module | None = FrozenBatchNorm(width)
        self.conv3: nn.Module = _conv(width, outputs, 1)
        self.bn3: nn.Module | None = FrozenBatchNorm(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 4 * width, H / stride, W / stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = conv_bn(x, self.conv1, self.bn1, "relu")
        x = conv_bn(x, self.conv2, self.bn2, "relu")
        return conv_bn(x, self.conv3, self.bn3, "relu", shortcut)

    def inference_form(self, dtype: torch.dtype) -> Bottleneck:
        """See `model.network.inference`."""
        self.conv1, self.bn1 = fold(self.conv1, self.bn1, dtype), None
        self.conv2, self.bn2 = fold(self.conv2, self.bn2, dtype), None
        self.conv3, self.bn3 = fold(self.conv3, self.bn3, dtype, adds=True), None
        self.downsample = _folded(self.downsample, self.conv3, dtype)
        return self


def _folded(downsample: nn.Module | None, last: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """The inference form of a shortcut layer; `last` is the convolution that adds its result."""
    if not isinstance(downsample, _Downsample):
        return downsample
    folded = fold(downsample[0], downsample[1], dtype)
    move_bias(folded, last)
    return folded


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return _Downsample(_conv(inputs, outputs, 1, stride), FrozenBatchNorm(outputs))


class ResNet(Backbone):
    """A stem and four stages; the maps of the last three are returned."""

    block: ClassVar[type[BasicBlock] | type[Bottleneck]]
    depths: ClassVar[tuple[int, int, int, int]]  # blocks of each stage

    def __init__(self) -> None:
        super().__init__()
        self.conv1: nn.Module = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1: nn.Module | None = FrozenBatchNorm(64)
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        inputs = 64
        for index, depth in enumerate(self.depths):
            width, blocks = 64 * 2**index, []
            for position in range(depth):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(self.block(inputs, width, stride))
                inputs = width * self.block.expansion
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.channels = (inputs // 4, inputs // 2, inputs)

    def stages(self) -> list[nn.Module]:
        """Stem and stages, finest first."""
        layers = [self.get_submodule(f"layer{index}") for index in range(1, 5)]
        return [self.conv1, *layers]

    def forward(self, images: Tensor) -> Maps:
        """[B, 3, H, W] -> maps of strides 8, 16, 32."""
        x = conv_bn(images, self.conv1, self.bn1, "relu")
        x = self.pool(x)
        x = self.get_submodule("layer1")(x)
        c3 = self.get_submodule("layer2")(x)
        c4 = self.get_submodule("layer3")(c3)
        return c3, c4, self.get_submodule("layer4")(c4)

    def inference_form(self, dtype: torch.dtype) -> ResNet:
        """See `model.network.inference`."""
        # Each stage's first block has a shortcut layer, so no map is overwritten by the next stage.
        self.conv1, self.bn1 = fold(self.conv1, self.bn1, dtype), None
        return self


class ResNet18(ResNet):
    """Basic blocks."""

    block, depths = BasicBlock, (2, 2, 2, 2)


class ResNet50(ResNet):
    """Bottlenecks."""

    block, depths = Bottleneck, (3, 4, 6, 3)
