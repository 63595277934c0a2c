"""The user's own data: images to train on, images to validate on, and the facts about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from model.data.annotations import DataError, GroundTruth
from model.data.data_sets import DataSet, open_coco, open_data_set
from model.data.splits import check_boxes_of_split, check_classes_of_split
from model.data.survey import shared_images
from model.labels import COCO_LABELS
from model.training.options import TrainOptions
from model.training.recipe import DataFacts, facts_of
from model.training.sources import GroundTruthSource, ImageSource
from model.training.validation import ValidationSet, holdout, sample

Report = Callable[[str], None]


class TrainingData(NamedTuple):
    """The training images, their classes, and what to validate on."""

    source: ImageSource
    labels: tuple[str, ...]
    category_ids: tuple[int, ...]  # COCO category id of each class
    validation: ValidationSet | None = None
    facts: DataFacts | None = None  # of the user's own data


def open_own_data(options: TrainOptions, report: Report | None = None) -> TrainingData:
    """Opens the data of `data`, or of `annotations` and `images`, and what to validate on.

    Args:
        options: of the run.
        report: called with a report of oddities in the data; None: they are not reported.

    Raises:
        DataError: if the data cannot be used.
    """
    data = _training_set(options, report)
    check_boxes_of_split(data, "learn from")
    truth, validation = _with_validation(options, data, report)
    source = GroundTruthSource(truth, data.folder, COCO_LABELS)
    facts = facts_of(truth, data.sizes)
    return TrainingData(source, source.label_names, source.category_ids, validation, facts)


def _training_set(options: TrainOptions, report: Report | None) -> DataSet:
    if options.data is not None:
        data = open_data_set(options.data, "train", report)
        if data is None:
            raise DataError(f"{options.data} has no training images (a split named train)")
        return data
    assert options.annotations is not None and options.images is not None
    return open_coco(options.annotations, options.images, report)


def _with_validation(
    options: TrainOptions, data: DataSet, report: Report | None
) -> tuple[GroundTruth, ValidationSet | None]:
    """Returns the images to train on, and those to validate on: given ones, or a holdout."""
    given = _given_validation(options, report)
    if given is None and options.data is not None:
        given = open_data_set(options.data, "val", report)
    if given is not None:
        check_boxes_of_split(given, "validate on")
        check_classes_of_split(given, data.truth, data.subject)
        _report_shared_images(data, given, report)
        return data.truth, _as_validation(given, options)
    training, held_out = holdout(data.truth, options.holdout, options.validation_images)
    if held_out is None:
        return training, None
    subject = (
        f"{len(held_out.images)} of {len(data.truth.images)} images of {data.subject}, which are "
        "not trained on (the same ones for the same images; --holdout 0: none)"
    )
    return training, ValidationSet(held_out, data.folder, subject)


def open_validation(options: TrainOptions, report: Report | None = None) -> ValidationSet | None:
    """Opens the images of `val_annotations` and `val_images`; None without them.

    Raises:
        DataError: if they cannot be used.
    """
    given = _given_validation(options, report)
    return None if given is None else _as_validation(given, options)


def _given_validation(options: TrainOptions, report: Report | None) -> DataSet | None:
    if options.val_annotations is None or options.val_images is None:
        return None
    return open_coco(options.val_annotations, options.val_images, report)


def _as_validation(data: DataSet, options: TrainOptions) -> ValidationSet:
    truth, number = sample(data.truth, options.validation_images), str(len(data.truth.images))
    if len(truth.images) < len(data.truth.images):
        number = f"{len(truth.images)} of {number} (--validation-images)"
    return ValidationSet(truth, data.folder, f"{number} images of {data.subject}")


def _report_shared_images(data: DataSet, given: DataSet, report: Report | None) -> None:
    """Reports images that are both trained and validated on: their scores mean little."""
    shared = shared_images(data, given)
    if shared and report is not None:
        report(
            f"warning: {len(shared)} of {len(given.truth.images)} validation images are also "
            f"trained on, the first: {shared[0]}"
        )
