"""Every named variant with few channels; the structure of encoder, decoder and heads is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from model import VARIANTS, ModelConfig
from model.network.backbone import BACKBONES
from model.network.backbone.resnet import BasicBlock, ResNet
from model.network.backbone.swin import Swin

FAMILY = [name for name, config in VARIANTS.items() if config.d_model == 256]

_FAST = (
    "lite-dino-r50-h2l2-2p1x3",
    "lite-dino-swint-h3l1-2p1x3",
    "dino-r50-4scale",
    "h-detr-r50",
    "deformable-detr-r50",
)
parametrize_family = pytest.mark.parametrize(
    "name",
    [name if name in _FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILY],
)
"""Runs a test with each variant; those that add no further part to the others are slow tests."""

_REPRESENTATIVES = ("lite-h-detr-swint-h3l1-2p1x3",)
parametrize_whole_family = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[pytest.mark.slow, *[pytest.mark.family] * (name not in _REPRESENTATIVES)]
        )
        for name in FAMILY
    ],
)
"""The same for tests that take many seconds a variant: most are left to `make test-family`."""


class SmallResNet(ResNet):
    """One basic block a stage."""

    block, depths = BasicBlock, (1, 1, 1, 1)


class SmallSwin(Swin):
    """Narrow, with a shifted block in each stage."""

    embed, depths, heads = 16, (2, 2, 2, 2), (2, 2, 4, 4)


def shrunk(name: str, **changes: Any) -> ModelConfig:
    """The config of a variant, narrow."""
    config = VARIANTS[name]
    return replace(
        config,
        **{
            "d_model": 32,
            "num_heads": 2,
            "num_classes": 3,
            "encoder_feedforward": 48,
            "decoder_layers": 2,
            "decoder_feedforward": 40,
            "num_queries": 12,
            "one_to_many_queries": 18 if config.one_to_many_queries else 0,
            "max_detections": 10,
            **changes,
        },
    )


@pytest.fixture
def small_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of ResNet-50 and Swin-T build small networks of their kind."""
    monkeypatch.setitem(BACKBONES, "resnet50", f"{__name__}:SmallResNet")
    monkeypatch.setitem(BACKBONES, "swin_tiny", f"{__name__}:SmallSwin")
