"""Continues training the default model for some minutes, on a GPU.

python -m benchmarks.gpu.train_default --cache SCENES --output RUN --minutes 8
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.report import ROOT
from model.training.loop import TrainingStopped, train
from model.training.options import TrainOptions


def main() -> None:
    """Trains from the shipped weights for `--minutes`."""
    parser = argparse.ArgumentParser(description="Train the default model further.")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--max-iterations", type=int, default=200_000)
    options = parser.parse_args()
    try:
        path = _train(options)
    except TrainingStopped as stop:
        sys.exit(stop.exit_status)
    print(path)


def _train(options: argparse.Namespace) -> Path:
    return train(
        TrainOptions(
            output=options.output,
            cache=options.cache,
            init_from=ROOT / "model" / "weights" / "default.safetensors",
            max_iterations=options.max_iterations,
            max_minutes=options.minutes,
            batch_size=options.batch_size,
            workers=options.workers,
            learning_rate=5e-4,
            backbone_lr_factor=0.5,
            sizes=(288, 320, 384, 448, 512),
            freeze_backbone_stages=1,
            resume=True,
        )
    )


if __name__ == "__main__":
    main()
