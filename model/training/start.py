"""The start of a run: its images, its network and the weights that it starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch

from model.config import VARIANTS, ModelConfig
from model.data.annotations import DataError
from model.labels import CODE_LABELS
from model.network.detector import LiteDETR, build_detector
from model.training.options import TrainOptions
from model.training.own_data import TrainingData, open_own_data, open_validation
from model.training.sources import (
    AnnotatedImage,
    CacheSource,
    LiveSource,
)
from model.training.transfer import load_fitting

_GENERATOR = "model.training.codes"


def open_source(options: TrainOptions, report: Callable[[str], None] | None = None) -> TrainingData:
    """Opens the training images; the user's own data is checked as a whole.

    Args:
        options: of the run.
        report: called with a report of oddities in the data; None: they are not reported.

    Raises:
        DataError: if the data cannot be used.
    """
    if options.has_own_data:
        return open_own_data(options, report)
    # As in annotations.json, which the generator of a cache writes.
    code_ids = tuple(range(1, len(CODE_LABELS) + 1))
    validation = open_validation(options, report)
    if validation is not None:
        validation.truth.category_ids(CODE_LABELS)  # refuses classes that are not trained
    if options.cache is not None:
        source = CacheSource(options.cache, CODE_LABELS)
        return TrainingData(source, CODE_LABELS, code_ids, validation)
    if find_spec(_GENERATOR) is None:
        raise DataError(
            "the generator of training images is not part of the installed package, only of a "
            "source checkout: train on your own data with --data, or with --annotations and "
            "--images, or run this command in a checkout"
        )
    from model.training.codes.editions import EDITIONS  # noqa: PLC0415 - see above

    if options.generator_edition not in EDITIONS:
        raise DataError(
            f"--generator-edition {options.generator_edition} is none of "
            f"{', '.join(map(str, EDITIONS))}"
        )
    side = max((*options.sizes, *options.later_sizes, *options.final_sizes))
    generate = partial(
        generate_code_image,
        seed=options.seed,
        max_side=side,
        edition=options.generator_edition,
        edition_1_share=options.edition_1_share,
    )
    live = LiveSource(generate, options.live_scenes)
    return TrainingData(live, CODE_LABELS, code_ids, validation)


def generate_code_image(
    number: int, seed: int, max_side: int, edition: int = 1, edition_1_share: float = 0.0
) -> AnnotatedImage:
    """Returns the generated image of a number; its longest side is at most `max_side` pixels."""
    from model.training.codes import generate_scene  # noqa: PLC0415 - needs the extra `train`

    if np.random.default_rng((seed, number, 1)).random() < edition_1_share:
        edition = 1
    rng = np.random.default_rng((seed, number))
    scene = generate_scene(rng, max_side=max_side, edition=edition)
    return AnnotatedImage(scene.image, scene.boxes_xyxy, scene.labels)


def build_start(
    options: TrainOptions, labels: Sequence[str], report: Callable[[str], None]
) -> LiteDETR:
    """Builds the network for `labels`, with its start weights.

    Raises:
        CheckpointError, DataError: for weights that cannot be read or do not fit.
    """
    torch.manual_seed(options.seed)
    detector = build_detector(_config(options, labels))
    if options.pretrained_backbone is not None:
        try:
            detector.body.load_pretrained(options.pretrained_backbone)
        except ValueError as error:
            raise DataError(f"--pretrained-backbone: {error}") from error
        report(f"backbone starts from {options.pretrained_backbone}")
    if options.init_from is not None:
        for line in load_fitting(detector, options.init_from, labels):
            report(line)
    detector.body.set_drop_path(options.drop_path)
    detector.body.freeze_stages(options.freeze_backbone_stages)
    return detector


def _config(options: TrainOptions, labels: Sequence[str]) -> ModelConfig:
    variant = VARIANTS[options.variant]
    config = replace(
        variant,
        num_classes=len(labels),
        duplicate_iou=options.duplicate_iou or 1.0,
        neighbour_demotion=options.neighbour_demotion,
    )
    if options.num_queries is not None:
        most = max(options.num_queries, variant.max_detections)
        config = replace(config, num_queries=options.num_queries, max_detections=most)
    if options.input_side is None:
        return config
    return replace(config, shortest_side=options.input_side, longest_side=options.input_side)
