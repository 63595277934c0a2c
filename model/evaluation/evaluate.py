"""Scores a detector on annotated images with COCO's measures.

annotations (`GroundTruth`) -> images, decoded and resized as in serving -> `Predictor`
    -> `ImageDetections` -> `evaluate_coco` -> `Scores`

`evaluate` does all of it; `model.evaluation.photo_rules` scores the same detections by other rules.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from model.config import ModelConfig
from model.data.annotations import DataError, GroundTruth
from model.data.image_files import FILE_LIMITS
from model.data.output_files import check_output_file, write_output
from model.detections import Detections
from model.evaluation.batches import image_batches
from model.evaluation.scores import ClassScores, Scores, format_scores
from model.images.decode import ImageLimits

__all__ = [
    "ImageDetections",
    "Scores",
    "coco_results",
    "evaluate",
    "evaluate_coco",
    "format_scores",
    "run_detector_on",
]

if TYPE_CHECKING:
    from model.predictor import Predictor

_MAX_DETECTIONS = (1, 10, 100)  # an image; the three at which COCO measures recall
_IOU_50, _IOU_75 = 0, 5  # rows of COCO's ten IoU thresholds 0.50, 0.55, ... 0.95
_ALL_AREAS = 0  # of COCO's all, small, medium, large

Progress = Callable[[int, int], None]  # images done, images in total


@dataclass(frozen=True)
class ImageDetections:
    """The detections in one image of a `GroundTruth`."""

    image_id: int
    detections: Detections  # labels are category ids of the ground truth
    milliseconds: float  # the resize, and the image's share of its batch


def evaluate(  # noqa: PLR0913 - options, by keyword
    predictor: Predictor,
    labels: Sequence[str],
    annotations: Path | str,
    images_dir: Path | str,
    *,
    batch_size: int = 1,
    limit: int | None = None,
    results_path: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
    limits: ImageLimits = FILE_LIMITS,
) -> Scores:
    """Scores a model on annotated images.

    Args:
        predictor: runs the model.
        labels: the model's class names, one per output.
        annotations: COCO-format JSON; its category names are looked up in `labels`.
        images_dir: the folder that its `file_name`s are relative to.
        batch_size: images of one shape bucket in a batch.
        limit: use only the first images of the file.
        results_path: where to write the detections as a COCO results file.
        overwrite: replaces an existing results file.
        progress: called after each batch.
        report: called with a report of oddities in the data; None: they are not reported.
        limits: on an image file.

    Returns:
        The scores.

    Raises:
        DataError: for annotations or images that cannot be used; all are checked at the start.
        OutputError: if the results file cannot be written; this is checked at the start too.
        ModuleNotFoundError: without faster-coco-eval (the `train` extra).
    """
    import_module("faster_coco_eval")  # fails here, not after the model has run for an hour
    annotations, images_dir = Path(annotations), Path(images_dir)
    if results_path is not None:
        check_output_file(results_path, overwrite=overwrite, inputs=(annotations,))
    truth = GroundTruth.read(annotations, limit, images=images_dir, report=report)
    if results_path is not None:
        files = (images_dir / image.file_name for image in truth.images)
        check_output_file(results_path, overwrite=overwrite, inputs=files)
    predictions = run_detector_on(
        predictor,
        truth,
        images_dir,
        predictor.config,
        labels,
        batch_size=batch_size,
        progress=progress,
        limits=limits,
    )
    if results_path is not None:
        data = json.dumps(coco_results(predictions)).encode()
        write_output(results_path, data, overwrite=overwrite)
    return evaluate_coco(predictions, truth)


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
) -> list[ImageDetections]:
    """Runs a detector on the images of a ground truth.

    Args:
        predictor: runs the detector.
        truth: the images.
        images_dir: the folder that their file names are relative to.
        config: the detector's input rule and bucket grid.
        labels: the detector's class names, one per output.
        batch_size: images of one shape bucket in a batch.
        progress: called after each batch.
        limits: on an image file.

    Returns:
        One entry per image, in the order of the ground truth, without detections of classes that
        it does not have.

    Raises:
        DataError: for an image that cannot be read, or annotated classes that the detector
            does not have.
    """
    categories = truth.category_ids(labels)
    done: dict[int, ImageDetections] = {}
    for batch in image_batches(truth.images, images_dir, config, batch_size, limits):
        start = time.perf_counter()
        results = predictor.predict(
            [image.pixels for image in batch],
            batch[0].padded,
            [image.original_size for image in batch],
        )
        milliseconds = (time.perf_counter() - start) * 1000 / len(batch)
        for image, detections in zip(batch, results, strict=True):
            done[image.image_id] = ImageDetections(
                image.image_id,
                _with_category_ids(detections, categories),
                image.resize_ms + milliseconds,
            )
        if progress is not None:
            progress(len(done), len(truth.images))
    return [done[image.image_id] for image in truth.images]


def _with_category_ids(detections: Detections, categories: Mapping[int, int]) -> Detections:
    """The detections with category ids as labels, without those of no category."""
    known = detections.keep(np.isin(detections.labels, list(categories)))
    labels = np.array([categories[int(label)] for label in known.labels], np.int64)
    return Detections(known.scores, labels, known.boxes_xyxy)


def evaluate_coco(predictions: Sequence[ImageDetections], truth: GroundTruth) -> Scores:
    """COCO's box scores.

    Args:
        predictions: detections with category ids of `truth`; an image without an entry counts as
            one without detections.
        truth: the annotated boxes.

    Returns:
        The scores.

    Raises:
        DataError: for predictions on an image that the ground truth does not have.
        ModuleNotFoundError: without faster-coco-eval (the `train` extra).
    """
    from faster_coco_eval import COCO, COCOeval_faster  # noqa: PLC0415 - not in serving's set

    unknown = {entry.image_id for entry in predictions} - {p.image_id for p in truth.images}
    if unknown:
        raise DataError(f"predictions for unknown image ids {sorted(unknown)[:5]}")
    expected = COCO(truth.to_coco())
    results = coco_results(predictions)
    # The library cannot read an empty list of results; it can read a set without annotations.
    given = expected.loadRes(results) if results else COCO({**truth.to_coco(), "annotations": []})
    scorer = COCOeval_faster(expected, given, iouType="bbox", print_function=_discard)
    scorer.params.maxDets = list(_MAX_DETECTIONS)
    scorer.evaluate()
    scorer.accumulate()
    times = [entry.milliseconds for entry in predictions]
    return _collect(
        np.asarray(scorer.eval["precision"], np.float64),
        np.asarray(scorer.eval["recall"], np.float64),
        [int(key) for key in scorer.params.catIds],
        truth,
        float(np.mean(times)) if times else 0.0,
    )


def _discard(*_words: object) -> None:
    """Takes the lines that the library would print."""


def _collect(
    precision: npt.NDArray[np.float64],
    recall: npt.NDArray[np.float64],
    category_ids: list[int],
    truth: GroundTruth,
    milliseconds: float,
) -> Scores:
    """Means of COCO's tables, in which -1 stands for "nothing annotated".

    Args:
        precision: [T, R, K, A, M]: IoU threshold, recall point, class, area, limit of detections.
        recall: [T, K, A, M].
        category_ids: of K.
        truth: for names and counts.
        milliseconds: per image.
    """
    counts = truth.counts()
    per_class = tuple(
        ClassScores(
            name=truth.categories[key],
            num_boxes=counts[key],
            ap=_mean(precision[:, :, column, _ALL_AREAS, -1]),
            ap50=_mean(precision[_IOU_50, :, column, _ALL_AREAS, -1]),
            ar_100=_mean(recall[:, column, _ALL_AREAS, -1]),
        )
        for column, key in enumerate(category_ids)
        if counts.get(key)
    )
    return Scores(
        ap=_mean(precision[:, :, :, _ALL_AREAS, -1]),
        ap50=_mean(precision[_IOU_50, :, :, _ALL_AREAS, -1]),
        ap75=_mean(precision[_IOU_75, :, :, _ALL_AREAS, -1]),
        ap_small=_mean(precision[:, :, :, 1, -1]),
        ap_medium=_mean(precision[:, :, :, 2, -1]),
        ap_large=_mean(precision[:, :, :, 3, -1]),
        ar_1=_mean(recall[:, :, _ALL_AREAS, 0]),
        ar_10=_mean(recall[:, :, _ALL_AREAS, 1]),
        ar_100=_mean(recall[:, :, _ALL_AREAS, 2]),
        per_class=per_class,
        num_images=len(truth.images),
        num_boxes=sum(counts.values()),
        milliseconds_per_image=milliseconds,
    )


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    measured = values[values >= 0]
    return float(measured.mean()) if measured.size else None


def coco_results(predictions: Sequence[ImageDetections]) -> list[dict[str, Any]]:
    """Detections in COCO's results form: image_id, category_id, bbox (x, y, w, h) and score."""
    return [
        {
            "image_id": entry.image_id,
            "category_id": int(label),
            "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
            "score": float(score),
        }
        for entry in predictions
        for score, label, box in zip(
            entry.detections.scores,
            entry.detections.labels,
            entry.detections.boxes_xyxy.astype(np.float64),
            strict=True,
        )
    ]
