"""Validation while a run trains: detects as in serving, scores as `lite-detr eval` does.

`holdout` keeps a part of the training images for it if no validation images are given.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model.data.annotations import DataError, GroundTruth, ImageAnnotations
from model.evaluation.evaluate import ImageDetections, evaluate_coco, run_detector_on
from model.evaluation.operating_points import class_curves, mean_f1
from model.evaluation.scores import Scores
from model.network.detector import LiteDETR
from model.network.inference import prepare_for_inference
from model.network.precision import resolve_precision
from model.postprocess import drop_duplicates
from model.predictor import Predictor

FEWEST_BOXES = 20  # by which a threshold and duplicate_iou are chosen

_FEWEST = 10  # images from which a holdout is made
_TRIED_WHILE_TRAINING = (1.0, 0.7)  # duplicate_iou
_TRIED_AT_THE_END = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


@dataclass(frozen=True)
class ValidationSet:
    """Images to validate on.

    Attributes:
        truth: their boxes.
        folder: that their file names are relative to.
        description: where they come from, for the report.
    """

    truth: GroundTruth
    folder: Path
    description: str

    @property
    def is_telling(self) -> bool:
        """Whether there are enough boxes to choose a threshold and duplicate_iou by."""
        boxes = sum(not box.crowd for image in self.truth.images for box in image.boxes)
        return boxes >= FEWEST_BOXES

    @property
    def digest(self) -> str:
        """Differs for other images or boxes; it does not depend on the folder."""
        names = self.truth.categories
        rows = [
            [i.file_name, *((names[b.category_id], b.xywh, b.crowd) for b in i.boxes)]
            for i in self.truth.images
        ]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass(frozen=True)
class Validation:
    """The result of a validation.

    Attributes:
        scores: of the detections.
        predictions: the detections, with category ids of the ground truth.
        duplicate_iou: with which they were made.
    """

    scores: Scores
    predictions: tuple[ImageDetections, ...]
    duplicate_iou: float

    def values(self) -> dict[str, float]:
        """Returns ap, ap50 and the AP50 of each class, those that are known."""
        named = {"ap": self.scores.ap, "ap50": self.scores.ap50}
        named |= {f"ap50/{row.name}": row.ap50 for row in self.scores.per_class}
        return {name: value for name, value in named.items() if value is not None}

    def classes_without_hit(self) -> list[str]:
        """Returns the annotated classes of which no object is found."""
        return [row.name for row in self.scores.per_class if not row.ap50]


def sample(truth: GroundTruth, most: int) -> GroundTruth:
    """Returns at most so many of the images, which depend on the file names only; 0: all."""
    if not 0 < most < len(truth.images):
        return truth
    kept = {image.image_id for image in _in_random_order(truth)[:most]}
    images = tuple(image for image in truth.images if image.image_id in kept)
    return GroundTruth(images, truth.categories)


def holdout(
    truth: GroundTruth, share: float, most: int = 0
) -> tuple[GroundTruth, GroundTruth | None]:
    """Splits the images into those to train on and those to validate on.

    The split depends on the file names only, so every run on the same data with the same share has
    the same. The last image of a class is always trained on.

    Args:
        truth: all images.
        share: of the images to validate on.
        most: images to validate on; 0: not limited.

    Returns:
        Training and validation images; None for the latter if the share is 0 or there are fewer
        than 10 images.
    """
    count = round(len(truth.images) * share)
    count = min(count, most) if most else count
    if len(truth.images) < _FEWEST or count < 1:
        return truth, None
    kept = _held_out(truth, count)
    training = tuple(image for image in truth.images if image.image_id not in kept)
    validation = tuple(image for image in truth.images if image.image_id in kept)
    if not any(image.boxes for image in training) or not any(image.boxes for image in validation):
        return truth, None
    return GroundTruth(training, truth.categories), GroundTruth(validation, truth.categories)


def _held_out(truth: GroundTruth, count: int) -> set[int]:
    """Returns the ids of at most `count` images to validate on."""
    classes = {
        image.image_id: {box.category_id for box in image.boxes if not box.crowd}
        for image in truth.images
    }
    trained = Counter(key for each in classes.values() for key in each)  # images of each class
    chosen: set[int] = set()
    for image in _in_random_order(truth):
        own = classes[image.image_id]
        if len(chosen) < count and all(trained[key] > 1 for key in own):
            chosen.add(image.image_id)
            trained.subtract(own)
    return chosen


def _in_random_order(truth: GroundTruth) -> list[ImageAnnotations]:
    return sorted(truth.images, key=lambda image: _hash(image.file_name))


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest()


class ValidationAbandoned(Exception):
    """A signal stopped a validation; there are no scores."""


class Validator:
    """Scores weights on the validation images.

    Args:
        data: the images.
        labels: class names of the detector.
        device: to run on.
        duplicate_iou: of the detector; None: the best of several.
        is_stopped: whether a signal stops the run; called before the first image and after each.
    """

    def __init__(
        self,
        data: ValidationSet,
        labels: Sequence[str],
        device: torch.device,
        duplicate_iou: float | None,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Runs nothing yet."""
        self.data = data
        self._labels = tuple(labels)
        self._device = device
        self._duplicate_iou = duplicate_iou
        self._is_stopped = is_stopped
        self._model: LiteDETR | None = None

    def validate(
        self, detector: LiteDETR, weights: Mapping[str, Tensor], *, final: bool = False
    ) -> Validation:
        """Detects with the given weights and scores the detections.

        Args:
            detector: its architecture is used.
            weights: of the detector.
            final: tries more values of duplicate_iou.

        Returns:
            The scores and detections; images that cannot be read count as without detections.

        Raises:
            DataError: if no image can be read.
            ValidationAbandoned: if a signal stops the run meanwhile.
        """
        if self._model is None:
            self._model = copy.deepcopy(detector).eval()
        self._model.load_state_dict(weights)
        config = replace(detector.config, duplicate_iou=1.0)
        _, dtype = resolve_precision("auto", str(self._device))
        network = prepare_for_inference(self._model, dtype)
        predictor = Predictor(network, config, str(self._device))
        truth, folder = self.data.truth, self.data.folder
        unreadable: dict[int, str] = {}
        found = run_detector_on(
            predictor,
            truth,
            folder,
            config,
            self._labels,
            progress=self._check_stop,
            unreadable=unreadable,
        )
        if not found:
            raise DataError(f"no validation image can be read: {next(iter(unreadable.values()))}")
        tried: tuple[float, ...] = _TRIED_AT_THE_END if final else _TRIED_WHILE_TRAINING
        if self._duplicate_iou is not None:
            tried = (self._duplicate_iou,)
        elif not self.data.is_telling:
            tried = (1.0,)
        scored = [self._scored(found, iou, tuple(unreadable.values())) for iou in tried]
        return max(scored, key=lambda each: _quality(each, truth))

    def _check_stop(self, _done: int, _all: int) -> None:
        if self._is_stopped():
            raise ValidationAbandoned

    def _scored(
        self, found: Sequence[ImageDetections], iou: float, unreadable: tuple[str, ...]
    ) -> Validation:
        """Scores the detections without duplicates above an IoU."""
        kept = tuple(
            entry if iou >= 1 else replace(entry, detections=drop_duplicates(entry.detections, iou))
            for entry in found
        )
        scores = evaluate_coco(kept, self.data.truth)
        return Validation(replace(scores, unreadable_images=unreadable), kept, iou)


def _quality(validation: Validation, truth: GroundTruth) -> float:
    """What duplicate_iou is chosen by: AP ranks detections, F1 counts those that users see."""
    f1 = mean_f1(class_curves(validation.predictions, truth)).max(initial=0.0)
    return (validation.scores.ap or 0.0) + float(f1)
