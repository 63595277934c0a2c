"""Scores a detector on annotated images with COCO's measures.

data (`DataSet`) -> images, decoded and resized as in serving -> `Predictor`
    -> `ImageDetections` -> `evaluate_coco` -> `Scores`

`evaluate` does all of it; `model.evaluation.photo_rules` scores the same detections by other rules.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from model.data.annotations import DataError, GroundTruth, ImageAnnotations
from model.data.data_sets import DataSet
from model.data.image_files import FILE_LIMITS
from model.data.input_files import open_regular_file
from model.data.output_files import check_output_file, is_stream, write_output
from model.evaluation.detections import ImageDetections, coco_results
from model.evaluation.protocol import is_val2017
from model.evaluation.run import Progress, run_detector_on
from model.evaluation.saved_detections import open_saved_detections, partial_file
from model.evaluation.scores import ClassScores, Scores, format_scores
from model.images.decode import ImageLimits, JpegDecoding

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


def evaluate(  # noqa: PLR0913 - options, by keyword
    predictor: Predictor,
    labels: Sequence[str],
    data: DataSet,
    *,
    batch_size: int = 1,
    limit: int | None = None,
    results_path: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
    limits: ImageLimits = FILE_LIMITS,
    jpeg_decoding: JpegDecoding = "exact",
    run: Mapping[str, Any] | None = None,
) -> Scores:
    """Scores a model on annotated images.

    Args:
        predictor: runs the model.
        labels: the model's class names, one per output.
        data: the annotated images; their category names are looked up in `labels`.
        batch_size: images of one shape bucket in a batch.
        limit: use only the first images.
        results_path: where to write the detections as a COCO results file.
        overwrite: replaces an existing results file.
        progress: called at the start and after each batch.
        report: called with lines for the user: images that are resumed or cannot be read; None:
            they are not reported.
        limits: on an image file.
        jpeg_decoding: "scaled" decodes large JPEGs to a fraction of their size.
        run: JSON values that identify model and options. With it, and with a regular file as
            `results_path`, detections are kept in `RESULTS.partial` while the run lasts; the same
            run then resumes after a stop.

    Returns:
        The scores. Images that cannot be read are listed in them and count as without detections.
        Then no results are written, but those of the other images are kept, as after a stop.

    Raises:
        DataError: for classes that the model does not have.
        OutputError: if a file cannot be written; this is checked at the start.
        ModuleNotFoundError: without faster-coco-eval (the `train` extra).
    """
    import_module("faster_coco_eval")  # fails here, not after the model has run for an hour
    say = report or (lambda _line: None)
    truth = replace(data.truth, images=data.truth.images[:limit])
    if results_path is not None:
        files = (data.folder / image.file_name for image in truth.images)
        check_output_file(results_path, overwrite=overwrite, inputs=(data.subject, *files))
    unreadable: dict[int, str] = {}
    with ExitStack() as stack:
        saved = None
        if run is not None and results_path is not None and not is_stream(results_path):
            run = {**run, "annotations": f"SHA-256 {_sha256(data)}"}
            partial = partial_file(results_path)
            saved = stack.enter_context(open_saved_detections(partial, run, overwrite=overwrite))
            if known := len(saved.of(image.image_id for image in truth.images)):
                say(f"resuming: {known} of {len(truth.images)} images are in {partial}")
        predictions = run_detector_on(
            predictor,
            truth,
            data.folder,
            predictor.config,
            labels,
            batch_size=batch_size,
            progress=progress,
            limits=limits,
            jpeg_decoding=jpeg_decoding,
            saved=saved,
            unreadable=unreadable,
        )
        if results_path is not None and not unreadable:
            results = json.dumps(coco_results(predictions)).encode()
            write_output(results_path, results, overwrite=overwrite)
            if saved is not None:
                saved.delete()
    return replace(
        evaluate_coco(predictions, truth),
        unreadable_images=tuple(unreadable.values()),
        is_val2017=is_val2017(truth),
    )


def _sha256(data: DataSet) -> str:
    """The digest of a COCO file, or of the annotations that were read from other files."""
    if data.subject.suffix.lower() == ".json":
        with open_regular_file(data.subject) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(data.truth.to_coco()).encode()).hexdigest()


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
    images = Counter(key for image in truth.images for key in _categories_of(image))
    per_class = tuple(
        ClassScores(
            name=truth.categories[key],
            num_images=images[key],
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


def _categories_of(image: ImageAnnotations) -> set[int]:
    """The category ids of the boxes of an image, without crowds."""
    return {box.category_id for box in image.boxes if not box.crowd}


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    measured = values[values >= 0]
    return float(measured.mean()) if measured.size else None
