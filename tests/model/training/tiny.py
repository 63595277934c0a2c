"""A tiny detector and tiny data for the training tests."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from model.config import ModelConfig
from model.network.detector import LiteDETR, build_detector
from model.training.loop import Trainer
from model.training.options import TrainOptions
from model.training.report import Reporter
from model.training.sources import ImageSource

LABELS = ("red", "blue")
CONFIG = ModelConfig(
    name="tiny",
    backbone="efficientnet_lite0",
    num_classes=len(LABELS),
    d_model=32,
    num_heads=2,
    encoder_layers=2,
    encoder_blocks=1,
    encoder_feedforward=64,
    decoder_layers=2,
    decoder_feedforward=64,
    num_queries=12,
    max_detections=12,
    shortest_side=96,
    longest_side=96,
)


def write_cache(folder: Path, count: int = 4) -> Path:
    """Images of one coloured square each, with their scenes.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    lines = []
    for number in range(count):
        pixels = np.full((96, 96, 3), 200, np.uint8)
        left, top = (int(value) for value in rng.integers(4, 50, 2))
        side = int(rng.integers(30, 42))
        label = number % len(LABELS)
        pixels[top : top + side, left : left + side] = ((220, 20, 20), (20, 20, 220))[label]
        Image.fromarray(pixels).save(folder / f"{number}.png")
        box = [left, top, left + side, top + side]
        scene = {"file": f"{number}.png", "width": 96, "height": 96}
        lines.append(json.dumps({**scene, "boxes": [box], "labels": [label]}) + "\n")
    (folder / "scenes.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def tiny_options(output: Path, **changes: object) -> TrainOptions:
    """A run of a few iterations in this process, without changes of the images."""
    values: dict[str, object] = {
        "output": output,
        "workers": 0,
        "max_iterations": 6,
        "batch_size": 2,
        "sizes": (96,),
        "symmetries": "none",
        "crop_probability": 0.0,
        "mosaic_probability": 0.0,
        "photometric": 0.0,
        "invert_probability": 0.0,
        "grey_probability": 0.0,
        "denoising_queries": 8,
        "warmup_iterations": 2,
        "log_every": 2,
        "sample_pictures": 1,
        "device": "cpu",
        "export_half": False,
        "freeze_backbone_stages": 0,
    }
    return TrainOptions(**{**values, **changes})  # type: ignore[arg-type]


class TinyBody(nn.Module):
    """A backbone that learns coloured squares from scratch in a few steps."""

    def __init__(self) -> None:
        super().__init__()
        stride_8 = (nn.Conv2d(3, 32, 4, 4), nn.ReLU(), nn.Conv2d(32, 40, 2, 2), nn.ReLU())
        self.stages = nn.ModuleList(
            (
                nn.Sequential(*stride_8),
                nn.Sequential(nn.Conv2d(40, 112, 2, 2), nn.ReLU()),
                nn.Sequential(nn.Conv2d(112, 320, 2, 2), nn.ReLU()),
            )
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        return tuple(maps)


def tiny_detector(**changes: Any) -> LiteDETR:
    """Fresh weights, the same each time.

    Args:
        **changes: fields of `CONFIG`.
    """
    torch.manual_seed(3)
    return build_detector(replace(CONFIG, **changes))


def quick_detector() -> LiteDETR:
    """As `tiny_detector`, with a backbone that fits two images in seconds."""
    detector = tiny_detector()
    detector.backbone[0].body = TinyBody()
    return detector


def tiny_trainer(options: TrainOptions, source: ImageSource) -> Trainer:
    """A trainer that reports into nothing."""
    options.output.mkdir(parents=True, exist_ok=True)
    reporter = Reporter(options.output, Console(file=io.StringIO()))
    return Trainer(tiny_detector(), source, LABELS, options, reporter)
