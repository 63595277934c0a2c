"""Runs a detector on the images of a ground truth, in batches of one shape bucket."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.config import ModelConfig
from model.data.annotations import DataError, GroundTruth, ImageAnnotations
from model.data.image_files import FILE_LIMITS
from model.detections import Detections
from model.evaluation.batches import image_batches
from model.evaluation.detections import ImageDetections
from model.images.decode import ImageLimits, JpegDecoding

if TYPE_CHECKING:
    from model.evaluation.saved_detections import SavedDetections
    from model.predictor import Predictor

_READERS_OF_A_GPU = 8  # threads that decode images ahead of the device

Progress = Callable[[int, int], None]  # images done, images in total


def run_detector_on(  # noqa: PLR0913 - options, by keyword
    predictor: Predictor,
    truth: GroundTruth,
    images_dir: Path,
    config: ModelConfig,
    labels: Sequence[str],
    *,
    batch_size: int = 1,
    progress: Progress | None = None,
    limits: ImageLimits = FILE_LIMITS,
    jpeg_decoding: JpegDecoding = "exact",
    saved: SavedDetections | None = None,
    unreadable: dict[int, str] | None = None,
) -> list[ImageDetections]:
    """Runs a detector on the images of a ground truth.

    Args:
        predictor: runs the detector.
        truth: the images.
        images_dir: the folder that their file names are relative to.
        config: the detector's input rule and bucket grid.
        labels: the detector's class names, one per output.
        batch_size: images of one shape bucket in a batch.
        progress: called at the start and after each batch.
        limits: on an image file.
        jpeg_decoding: "scaled" decodes large JPEGs to a fraction of their size.
        saved: has the images of an earlier run, which are not run again, and gets all others.
        unreadable: gets the reason for each image that cannot be read, by image id; None: the
            first one is an error.

    Returns:
        One entry per readable image, in the order of the ground truth, without detections of
        classes that it does not have.

    Raises:
        DataError: for an image that cannot be read, or annotated classes that the detector
            does not have.
    """
    categories = truth.category_ids(labels)
    done = {} if saved is None else saved.of(image.image_id for image in truth.images)
    failed: dict[int, str] = {} if unreadable is None else unreadable

    def report_progress() -> None:
        if progress is not None:
            progress(len(done) + len(failed), len(truth.images))

    def skip(image: ImageAnnotations, error: DataError) -> None:
        failed[image.image_id] = str(error)

    batches = image_batches(
        [image for image in truth.images if image.image_id not in done],
        images_dir,
        config,
        batch_size,
        limits,
        jpeg_decoding=jpeg_decoding,
        on_unreadable=None if unreadable is None else skip,
        readers=_READERS_OF_A_GPU if _runs_on_gpu(predictor) else 0,
    )
    report_progress()
    for batch in batches:
        start = time.perf_counter()
        results = predictor.predict(
            [image.pixels for image in batch],
            batch[0].padded,
            [image.original_size for image in batch],
        )
        milliseconds = (time.perf_counter() - start) * 1000 / len(batch)
        entries = [
            ImageDetections(
                image.image_id,
                _with_category_ids(detections, categories),
                image.resize_ms + milliseconds,
            )
            for image, detections in zip(batch, results, strict=True)
        ]
        if saved is not None:
            saved.add(entries)
        done |= {entry.image_id: entry for entry in entries}
        report_progress()
    report_progress()  # the last images may be unreadable
    return [done[image.image_id] for image in truth.images if image.image_id in done]


def _runs_on_gpu(predictor: Predictor) -> bool:
    """Whether images can be decoded on the CPU without taking it from the network."""
    return getattr(predictor, "runs_batches_whole", False)


def _with_category_ids(detections: Detections, categories: Mapping[int, int]) -> Detections:
    """The detections with category ids as labels, without those of no category."""
    known = detections.keep(np.isin(detections.labels, list(categories)))
    labels = np.array([categories[int(label)] for label in known.labels], np.int64)
    return Detections(known.scores, labels, known.boxes_xyxy)
