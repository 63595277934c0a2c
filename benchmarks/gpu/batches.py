"""Results of an image alone and in batches, on a device: R50 with weights that give high scores.

    python -m benchmarks.gpu.batches [--device cuda] [--count 4] [--results FILE]

On a GPU a batch runs as one and sums round differently; a near tie may then select another query.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.results import Results
from benchmarks.random_r50 import random_r50_detector
from model.network.inference import prepare_for_inference
from model.network.precision import compute_exactly_on_gpus
from model.predictor import Predictor

_BATCH = 8


def main() -> int:
    """Compares; returns 1 if a score is not finite."""
    parser = argparse.ArgumentParser(description="Compare single images with batches.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--count", type=int, default=4, help="batches")
    parser.add_argument("--size", type=int, nargs=2, default=(832, 1344), metavar=("H", "W"))
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    results = Results(options.results, device)
    compute_exactly_on_gpus()
    dtypes = (torch.float32, torch.float16) if device.type == "cuda" else (torch.float32,)
    rng = np.random.default_rng(0)
    for dtype in dtypes:
        detector = random_r50_detector().to(device)
        predictor = Predictor(prepare_for_inference(detector, dtype), detector.config, str(device))
        for _ in range(options.count):
            images = list(rng.integers(0, 256, (_BATCH, *options.size, 3), dtype=np.uint8))
            sizes = [tuple(options.size)] * _BATCH
            together = predictor.predict(images, tuple(options.size), sizes)
            alone = [predictor.predict([i], tuple(options.size), sizes[:1])[0] for i in images]
            differences = np.array(
                [np.abs(a.scores - b.scores).max() for a, b in zip(alone, together, strict=True)]
            )
            if not np.isfinite(differences).all():
                results.fail("a score is not finite")
            results.row(
                dtype=str(dtype).removeprefix("torch."),
                largest_score_difference=float(differences.max()),
                median_score_difference=float(np.median(differences)),
                images=_BATCH,
                equal_to_the_bit=int((differences == 0).sum()),
            )
    return results.exit_status


if __name__ == "__main__":
    sys.exit(main())
