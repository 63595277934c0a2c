"""The architecture of a detector, and the named variants.

Without torch: the serving edge reads the classes and the input rule of a model here. The
names in comments (`enc_scale`, `num_expansion`, ...) are those of the official Lite DETR code.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

# Of a model as clients name it, in URLs (`/v2/models/{name}`), metrics and files.
MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


_BACKBONE_MAPS = 3  # strides 8, 16 and 32; further levels are made from the last
_MAX_LEVELS = 8
_MAX_SIDE = 8192  # pixels: one image of so many takes hundreds of MB before the network


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one detector.

    Raises:
        ValueError: for fields that contradict one another; the message names the field.
    """

    name: str = "lite-dino"
    backbone: str = "resnet50"  # a key of model.network.backbone.BACKBONES
    # Official parameter names begin with `backbone.0.body.`; those of DINO's Swin: `backbone.0.`.
    backbone_in_body: bool = True
    num_classes: int = 91  # outputs of a classification head
    d_model: int = 256  # channels of a token; a multiple of 32 (GroupNorm) and of num_heads
    num_heads: int = 8
    num_feature_levels: int = 4  # strides 8, 16, 32, 64
    interleaved: bool = True  # False: every encoder layer updates every token (plain DINO)
    encoder_layers: int = 6
    encoder_blocks: int = 3  # num_expansion: how often the low-level tokens are updated
    high_level_scales: int = 3  # enc_scale: how many of the coarsest levels count as high-level
    encoder_points: int = 4  # sampling points per head and level
    encoder_feedforward: int = 2048  # width of the encoder's FFN
    key_aware: bool = True  # attention weights from sampled keys instead of a linear layer
    key_aware_decoder: bool = True  # in the decoder, too; only if `key_aware`
    separate_keys: bool = False  # proj_key: encoder keys have a projection of their own
    same_loc: bool = False  # encoder offsets shared by all levels
    decoder_layers: int = 6
    decoder_points: int = 4
    decoder_feedforward: int = 2048
    decoder_norm: bool = True  # the decoder's layers share a norm before the heads
    num_queries: int = 900
    # Queries in training only, after the others, of H-DETR's one-to-many branch.
    one_to_many_queries: int = 0
    # Content of the queries: learned (DINO, H-DETR) or from the selected proposals' boxes.
    learned_content: bool = True
    # Position of the queries: from each layer's refined boxes (DINO), or once from the proposals.
    refined_positions: bool = True
    # One box head and one class head serve all decoder layers, and two more the encoder's tokens;
    # False: each decoder layer has its own, and the encoder's tokens have the last ones.
    shared_heads: bool = True
    # Encoder tokens are selected by their best class; False: by their first, which then means "any
    # object", also in training.
    select_by_best_class: bool = True
    # Logits by which tokens rank lower that are not the best of the 3 x 3 around them; 0: off.
    # Neighbours propose the same box, and many queries for one object leave none for others.
    neighbour_demotion: float = 0.0
    cell_temperature: float = 20.0  # of the sine position encoding of feature maps
    cell_offset: float = 0.0  # cells; subtracted before positions are normalised
    inverse_sigmoid_eps: float = 1e-3  # bound of boxes before they are refined
    max_detections: int = 300  # per image: the best query-class pairs
    # IoU above which a detection that overlaps a better one, of any class, is dropped. 1 keeps all:
    # a fully trained DETR gives one detection per object.
    duplicate_iou: float = 1.0
    shortest_side: int = 800  # pixels; images are resized so that the short side is this ...
    longest_side: int = 1333  # pixels; ... or, if the long side would exceed this, that it is this
    bucket_stride: int = 64  # pixels; padded sizes are multiples of this

    def __post_init__(self) -> None:
        """Refuses fields that contradict one another."""
        checks = {
            "d_model": self.d_model % 32 == 0 and self.d_model % self.num_heads == 0,
            "num_feature_levels": _BACKBONE_MAPS <= self.num_feature_levels <= _MAX_LEVELS,
            "encoder_blocks": 1 <= self.encoder_blocks <= self.encoder_layers
            and self.encoder_layers % self.encoder_blocks == 0,
            "high_level_scales": 1 <= self.high_level_scales <= self.num_feature_levels,
            "num_classes": self.num_classes >= 1,
            "num_queries": self.num_queries >= 1,
            "one_to_many_queries": self.one_to_many_queries >= 0
            and not (self.one_to_many_queries and self.refined_positions),
            "neighbour_demotion": 0 <= self.neighbour_demotion < math.inf,
            "max_detections": self.max_detections >= 1,
            "learned_content": self.learned_content or not self.refined_positions,
            "cell_temperature": 1 < self.cell_temperature < math.inf,
            "cell_offset": 0 <= self.cell_offset <= 1,
            "inverse_sigmoid_eps": 0 < self.inverse_sigmoid_eps < 0.5,  # noqa: PLR2004
            "duplicate_iou": 0 < self.duplicate_iou <= 1,
            "shortest_side": 0 < self.shortest_side <= self.longest_side,
            "longest_side": self.longest_side <= _MAX_SIDE,
            "bucket_stride": 1 <= self.bucket_stride <= _MAX_SIDE,
        }
        for field, holds in checks.items():
            if not holds:
                raise ValueError(f"ModelConfig.{field}={getattr(self, field)!r} is impossible here")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Rebuilds a config from `to_dict`.

        Raises:
            ValueError: for a field that is unknown or of the wrong type; the message names it.
        """
        defaults = {field.name: getattr(cls, field.name) for field in fields(cls)}
        for key, value in values.items():
            if key not in defaults:
                raise ValueError(f"model config has an unknown field {key!r}")
            if type(value) is not type(defaults[key]):
                raise ValueError(
                    f"model config field {key!r} should be {type(defaults[key]).__name__}, "
                    f"not {type(value).__name__}"
                )
        return cls(**values)


_LITE_DINO = ModelConfig()
_LITE_H_DETR = replace(
    _LITE_DINO,
    decoder_norm=False,
    num_queries=300,
    one_to_many_queries=1500,
    refined_positions=False,
    shared_heads=False,
    select_by_best_class=False,
    cell_temperature=10000.0,
    cell_offset=0.5,
    inverse_sigmoid_eps=1e-5,
    max_detections=100,
)
_LITE_DEFORMABLE_DETR = replace(
    _LITE_H_DETR,
    encoder_feedforward=1024,
    decoder_feedforward=1024,
    learned_content=False,
    one_to_many_queries=0,
)
_SWIN_OF_DINO: dict[str, Any] = {"backbone": "swin_tiny", "backbone_in_body": False}
_SWIN_OF_H_DETR: dict[str, Any] = {"backbone": "swin_tiny"}
_BASELINE: dict[str, Any] = {"interleaved": False, "key_aware": False}
# Of the interleaved encoder, HxLy-(A+1)xB: x high-level scales, B blocks of A - 1 layers that
# update only the high-level tokens, and one that updates all.
_LAYOUTS: dict[str, dict[str, Any]] = {
    "h2l2-2p1x3": {"high_level_scales": 2, "encoder_blocks": 3},
    "h3l1-6p1x1": {"high_level_scales": 3, "encoder_blocks": 1},
    "h3l1-3p1x2": {"high_level_scales": 3, "encoder_blocks": 2},
    "h3l1-2p1x3": {"high_level_scales": 3, "encoder_blocks": 3},
}
_DETECTORS = {
    "lite-dino-r50": _LITE_DINO,
    "lite-dino-swint": replace(_LITE_DINO, **_SWIN_OF_DINO),
    "lite-h-detr-r50": _LITE_H_DETR,
    "lite-h-detr-swint": replace(_LITE_H_DETR, **_SWIN_OF_H_DETR),
    "lite-deformable-detr-r50": _LITE_DEFORMABLE_DETR,
}

_VARIANTS = (
    *(
        replace(config, name=f"{detector}-{layout}", **fields)
        for detector, config in _DETECTORS.items()
        for layout, fields in _LAYOUTS.items()
    ),
    replace(_LITE_DINO, name="dino-r50-4scale", **_BASELINE),
    replace(_LITE_DINO, name="dino-swint-4scale", **_BASELINE, **_SWIN_OF_DINO),
    replace(_LITE_H_DETR, name="h-detr-r50", **_BASELINE),
    replace(_LITE_H_DETR, name="h-detr-swint", **_BASELINE, **_SWIN_OF_H_DETR),
    replace(_LITE_DEFORMABLE_DETR, name="deformable-detr-r50", **_BASELINE),
    # As H-DETR's authors train it; their release is of this one.
    replace(
        _LITE_DEFORMABLE_DETR,
        name="deformable-detr-r50-ffn2048",
        encoder_feedforward=2048,
        decoder_feedforward=2048,
        **_BASELINE,
    ),
    # The family of the embedded default model: same rules, fewer and narrower layers.
    ModelConfig(
        name="lite-dino-efficientnet-lite0",
        backbone="efficientnet_lite0",
        num_classes=5,
        d_model=128,
        num_heads=4,
        encoder_layers=3,
        encoder_blocks=1,
        encoder_feedforward=512,
        decoder_layers=3,
        decoder_feedforward=512,
        num_queries=100,
        max_detections=100,
        shortest_side=384,
        longest_side=512,
    ),
    replace(
        _LITE_DINO,
        name="lite-dino-r18-small",
        backbone="resnet18",
        d_model=128,
        num_heads=4,
        encoder_layers=3,
        encoder_blocks=1,
        encoder_feedforward=512,
        decoder_layers=3,
        decoder_feedforward=512,
        num_queries=100,
        max_detections=100,
        shortest_side=384,
        longest_side=512,
    ),
)

VARIANTS: dict[str, ModelConfig] = {config.name: config for config in _VARIANTS}
