"""Backbones: image [B, 3, H, W] -> feature maps of strides 8, 16 and 32.

A backbone is one file in this folder and one line in `BACKBONES`. The registry names classes
without importing them: the serving edge reads it and never loads torch.
"""

from __future__ import annotations

from typing import Final

BACKBONES: Final[dict[str, str]] = {  # ModelConfig.backbone -> module:class, a `Backbone`
    "resnet18": "model.network.backbone.resnet:ResNet18",
    "resnet50": "model.network.backbone.resnet:ResNet50",
    "efficientnet_lite0": "model.network.backbone.efficientnet:EfficientNetLite0",
    "swin_tiny": "model.network.backbone.swin:SwinTiny",
}
