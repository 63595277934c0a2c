"""PyPI's `arbez` (YOLOX-s for barcodes, through onnxruntime) as a detector of our evaluation.

Install it beside the project: pip install arbez==0.2.1
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from model.data.annotations import GroundTruth
from model.data.image_files import read_image
from model.detections import Detections
from model.evaluation.evaluate import PhotoDetections

SCORE_THRESHOLD = 0.3  # its default of 0.25 finds the same codes on the photos


def run_arbez_on(
    truth: GroundTruth, folder: Path, progress: Callable[[int, int], None]
) -> list[PhotoDetections]:
    """Runs its detector, without reading the codes, on the photos of a set.

    Args:
        truth: the photos.
        folder: where their file names start from.
        progress: told after each photo.

    Returns:
        One entry a photo. Its classes are symbologies other than ours: all labels are 0, to be
        judged with classes ignored.

    Raises:
        ModuleNotFoundError: where arbez is not installed.
    """
    from arbez.engines.arbez import ArbezEngine  # noqa: PLC0415 - optional, and slow to import

    engine = ArbezEngine(decode=False, providers=("CPUExecutionProvider",))
    engine.warmup(smoke=True)
    answers = []
    for number, photo in enumerate(truth.images, 1):
        picture = read_image(folder / photo.file_name)
        start = time.perf_counter()
        found = engine.detect_and_decode(picture)
        spent_ms = (time.perf_counter() - start) * 1000
        detections = Detections(
            np.array([one.score for one in found], np.float32),
            np.zeros(len(found), np.int64),
            np.array([one.bbox_xyxy for one in found], np.float32).reshape(-1, 4),
        )
        answers.append(PhotoDetections(photo.image_id, detections, spent_ms))
        progress(number, len(truth.images))
    return answers
