"""How good a detector is on annotated photos: COCO scores, in the way that serving sees photos.

The data path ends here: annotations (`GroundTruth`) -> photos, decoded and resized as the
service does -> `Predictor` -> `PhotoDetections` -> `evaluate_coco` -> `Scores`. `evaluate` is the
whole way for one model file; `model.evaluation.photo_rules` judges the same detections otherwise.
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
from model.detections import Detections
from model.evaluation.batches import image_batches
from model.evaluation.scores import ClassScores, Scores, format_scores
from model.images.decode import ImageLimits

__all__ = [
    "PhotoDetections",
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

Progress = Callable[[int, int], None]  # photos done, photos in all


@dataclass(frozen=True)
class PhotoDetections:
    """What a detector found on one photo of a `GroundTruth`."""

    image_id: int
    detections: Detections  # labels are category ids of the ground truth
    milliseconds: float  # resize, and the photo's share of its batch


def evaluate(  # noqa: PLR0913 - options, by keyword
    model_path: Path | str,
    annotations: Path | str,
    images_dir: Path | str,
    *,
    device: str = "cpu",
    batch_size: int = 1,
    limit: int | None = None,
    results_path: Path | None = None,
    progress: Progress | None = None,
    limits: ImageLimits = FILE_LIMITS,
) -> Scores:
    """Scores a weights file on annotated photos.

    Args:
        model_path: a safetensors file of this project.
        annotations: COCO-format JSON; its category names are found among the model's labels.
        images_dir: the folder that its `file_name`s start from.
        device: a torch device.
        batch_size: photos of one bucket that run together.
        limit: only the first photos of the file.
        results_path: where to write the detections as a COCO results file.
        progress: told after each batch.
        limits: on an image file.

    Returns:
        The scores.

    Raises:
        CheckpointError: for a weights file that cannot be used.
        DataError: for annotations or photos that cannot be used.
        ModuleNotFoundError: without faster-coco-eval (the `train` extra).
    """
    # Named before the model runs for an hour.
    import_module("faster_coco_eval")
    from model.predictor import Predictor  # noqa: PLC0415
    from model.weights.checkpoint import load_detector  # noqa: PLC0415 - torch loads only when it runs

    truth = GroundTruth.read(Path(annotations), limit=limit)
    detector, info = load_detector(model_path, device)
    predictions = run_detector_on(
        Predictor(detector, info.config, device),
        truth,
        Path(images_dir),
        info.config,
        info.labels,
        batch_size=batch_size,
        progress=progress,
        limits=limits,
    )
    if results_path is not None:
        results_path.write_text(json.dumps(coco_results(predictions)), encoding="utf-8")
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
) -> list[PhotoDetections]:
    """Runs a detector over the photos of a ground truth.

    Args:
        predictor: the detector.
        truth: whose photos to run on.
        images_dir: the folder that its file names start from.
        config: the detector's input rule and bucket grid.
        labels: the detector's class names, by output.
        batch_size: photos of one bucket that run together.
        progress: told after each batch.
        limits: on an image file.

    Returns:
        One entry a photo, in the order of the ground truth; detections of classes that it does
        not have are left out.

    Raises:
        DataError: for a photo that cannot be read, or annotated classes that the detector
            does not know.
    """
    categories = truth.category_ids(labels)
    found: dict[int, PhotoDetections] = {}
    for batch in image_batches(truth.images, images_dir, config, batch_size, limits):
        start = time.perf_counter()
        answers = predictor.predict(
            [photo.pixels for photo in batch],
            batch[0].padded,
            [photo.original_size for photo in batch],
        )
        each_ms = (time.perf_counter() - start) * 1000 / len(batch)
        for photo, answer in zip(batch, answers, strict=True):
            known = _with_category_ids(answer, categories)
            found[photo.image_id] = PhotoDetections(
                photo.image_id, known, photo.resize_ms + each_ms
            )
        if progress is not None:
            progress(len(found), len(truth.images))
    return [found[photo.image_id] for photo in truth.images]


def _with_category_ids(detections: Detections, categories: Mapping[int, int]) -> Detections:
    """The same detections with category ids for labels, those without one left out."""
    known = detections.keep(np.isin(detections.labels, list(categories)))
    labels = np.array([categories[int(label)] for label in known.labels], np.int64)
    return Detections(known.scores, labels, known.boxes_xyxy)


def evaluate_coco(predictions: Sequence[PhotoDetections], truth: GroundTruth) -> Scores:
    """COCO's box scores.

    Args:
        predictions: detections with category ids of `truth`; photos without an entry count as
            photos on which nothing was found.
        truth: what there is to find.

    Returns:
        The scores.

    Raises:
        DataError: for predictions on a photo that the ground truth does not have.
        ModuleNotFoundError: without faster-coco-eval (the `train` extra).
    """
    from faster_coco_eval import COCO, COCOeval_faster  # noqa: PLC0415 - not in serving's set

    strangers = {entry.image_id for entry in predictions} - {p.image_id for p in truth.images}
    if strangers:
        raise DataError(f"predictions for unknown image ids {sorted(strangers)[:5]}")
    expected = COCO(truth.to_coco())
    results = coco_results(predictions)
    # An empty list of results has no form that the library reads: a set without annotations has.
    given = expected.loadRes(results) if results else COCO({**truth.to_coco(), "annotations": []})
    scorer = COCOeval_faster(expected, given, iouType="bbox", print_function=_say_nothing)
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


def _say_nothing(*_words: object) -> None:
    """For the library, which reports its steps by printing."""


def _collect(
    precision: npt.NDArray[np.float64],
    recall: npt.NDArray[np.float64],
    category_ids: list[int],
    truth: GroundTruth,
    milliseconds: float,
) -> Scores:
    """Means of COCO's tables; -1 in them stands for "nothing annotated".

    Args:
        precision: [T, R, K, A, M] by IoU, recall point, class, area and limit of detections.
        recall: [T, K, A, M].
        category_ids: of K.
        truth: for names and counts.
        milliseconds: a photo.
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


def coco_results(predictions: Sequence[PhotoDetections]) -> list[dict[str, Any]]:
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
