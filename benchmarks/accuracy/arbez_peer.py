"""The barcode detector `arbez` (YOLOX-s in onnxruntime), evaluated for comparison.

Requires the package: pip install arbez==0.2.1
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from model.data.annotations import GroundTruth
from model.data.image_files import read_image
from model.detections import Detections
from model.evaluation.evaluate import ImageDetections

SCORE_THRESHOLD = 0.3  # on the photos, its default of 0.25 detects the same codes


def run_arbez_on(
    truth: GroundTruth, folder: Path, progress: Callable[[int, int], None]
) -> list[ImageDetections]:
    """Runs arbez's detector, without decoding the codes, on the images of a set.

    Args:
        truth: the images.
        folder: that their file names are relative to.
        progress: called with (done, total) after each image.

    Returns:
        One entry per image. arbez's classes differ from ours: all labels are 0, and classes must
        be ignored in the evaluation.

    Raises:
        ModuleNotFoundError: if arbez is not installed.
    """
    from arbez.engines.arbez import ArbezEngine  # noqa: PLC0415 - optional, and slow to import

    engine = ArbezEngine(decode=False, providers=("CPUExecutionProvider",))
    engine.warmup(smoke=True)
    results = []
    for number, entry in enumerate(truth.images, 1):
        image = read_image(folder / entry.file_name)
        start = time.perf_counter()
        found = engine.detect_and_decode(image)
        spent_ms = (time.perf_counter() - start) * 1000
        detections = Detections(
            np.array([one.score for one in found], np.float32),
            np.zeros(len(found), np.int64),
            np.array([one.bbox_xyxy for one in found], np.float32).reshape(-1, 4),
        )
        results.append(ImageDetections(entry.image_id, detections, spent_ms))
        progress(number, len(truth.images))
    return results
