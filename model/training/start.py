"""The start of a run: its images, its network and the weights that it starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from model.config import VARIANTS, ModelConfig
from model.data.annotations import DataError
from model.labels import COCO_LABELS, CODE_LABELS
from model.network.detector import LiteDETR, build_detector
from model.training.options import TrainOptions
from model.training.sources import (
    AnnotatedImage,
    CacheSource,
    CocoSource,
    ImageSource,
    LiveSource,
)
from model.weights.header import CheckpointError, read_header

_GENERATOR = "model.training.codes"


class TrainingData(NamedTuple):
    """The training images and their classes."""

    source: ImageSource
    labels: tuple[str, ...]
    category_ids: tuple[int, ...]  # COCO category id of each class


def open_source(options: TrainOptions, report: Callable[[str], None] | None = None) -> TrainingData:
    """Opens the training images; COCO data is checked as a whole.

    Args:
        options: of the run.
        report: called with a report of oddities in the data; None: they are not reported.

    Raises:
        DataError: if the data cannot be used.
    """
    # As in annotations.json, which the generator of a cache writes.
    code_ids = tuple(range(1, len(CODE_LABELS) + 1))
    if options.cache is not None:
        return TrainingData(CacheSource(options.cache, CODE_LABELS), CODE_LABELS, code_ids)
    if options.annotations is not None and options.images is not None:
        coco = CocoSource(options.annotations, options.images, COCO_LABELS, report=report)
        return TrainingData(coco, coco.label_names, coco.category_ids)
    if find_spec(_GENERATOR) is None:
        raise DataError(
            "the generator of training images is not part of the installed package, only of a "
            "source checkout: train on your own data with --annotations and --images, or run "
            "this command in a checkout"
        )
    side = max((*options.sizes, *options.final_sizes))
    generate = partial(generate_code_image, seed=options.seed, max_side=side)
    return TrainingData(LiveSource(generate, options.live_scenes), CODE_LABELS, code_ids)


def generate_code_image(number: int, seed: int, max_side: int) -> AnnotatedImage:
    """Returns the generated image of a number; its longest side is at most `max_side` pixels."""
    from model.training.codes import generate_scene  # noqa: PLC0415 - needs the extra `train`

    scene = generate_scene(np.random.default_rng((seed, number)), max_side=max_side)
    return AnnotatedImage(scene.image, scene.boxes_xyxy, scene.labels)


def build_start(
    options: TrainOptions, labels: Sequence[str], report: Callable[[str], None]
) -> LiteDETR:
    """Builds the network for `labels`, with its start weights.

    Raises:
        ValueError: for weights that cannot be read.
    """
    torch.manual_seed(options.seed)
    detector = build_detector(_config(options, labels))
    if options.pretrained_backbone is not None:
        detector.body.load_pretrained(options.pretrained_backbone)
        report(f"backbone starts from {options.pretrained_backbone}")
    if options.init_from is not None:
        for line in load_fitting(detector, options.init_from):
            report(line)
    detector.body.freeze_stages(options.freeze_backbone_stages)
    return detector


def _config(options: TrainOptions, labels: Sequence[str]) -> ModelConfig:
    return replace(
        VARIANTS[options.variant], num_classes=len(labels), duplicate_iou=options.duplicate_iou
    )


def load_fitting(detector: LiteDETR, path: Path) -> list[str]:
    """Loads the tensors of a safetensors file that fit by name and shape.

    Returns:
        Lines that report what was loaded and what was not.

    Raises:
        CheckpointError: if the file cannot be read, is of another kind, or no tensor fits.
    """
    read_header(path)
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(path, f"cannot be read as safetensors: {error}") from error
    own = detector.state_dict()
    fitting = {name: t for name, t in saved.items() if name in own and t.shape == own[name].shape}
    if not fitting:
        raise CheckpointError(path, "no tensor fits this model by name and shape")
    # A tensor that layers share has several names and is stored under one.
    loaded = {own[name].data_ptr() for name in fitting}
    missing = [name for name in own if own[name].data_ptr() not in loaded]
    with torch.no_grad():
        for name, tensor in fitting.items():
            own[name].copy_(tensor)
    lines = [f"{path}: loaded {len(fitting)} tensors"]
    unused = sorted(saved.keys() - fitting)
    for title, names in (("keep their initial values", missing), ("do not fit", unused)):
        if names:
            lines.append(f"  {len(names)} {title}: {', '.join(names[:6])}")
    return lines
