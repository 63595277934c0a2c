"""The engine's way on a GPU: CUDA graphs against launches, overlapped against one by one.

    python -m benchmarks.gpu.pipeline [--device cuda] [--seconds 90] [--json FILE]

For each model, number type and batch size, in this order: does a replay give what its launches
give, on noise; do overlapped batches get the answers of batches alone; then medians of one batch
from pixels on the host to detections (and of the card's own time for it), and images a second with
one batch begun before the last has ended. Status 1 where numbers differ or nothing was recorded.
What does not fit into the time is left out and named.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.gpu.report import write
from model import VARIANTS, build_detector
from model.detections import Detections
from model.inference.network import InferenceDetector
from model.predictor import Predictor
from model.weights.checkpoint import load_detector
from model.weights.info import resolve_model
from service.engine.cuda_card import Card, CudaCard
from service.engine.device import BatchShape, DeviceAnswer
from service.engine.gpu_pipeline import GpuPipeline, PipelineLimits

_R50 = "lite-dino-r50-h3l1-2p1x3"  # with random weights
_BUCKETS = {_R50: (832, 1088), "default": (384, 512)}
_SCORE_BOUND = 1e-3  # of a replay against launches of the very same kernels
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BATCHES_IN_A_ROW = 6

Pictures = list[npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Timed:
    """Medians, milliseconds, and images a second."""

    whole_ms: float
    card_ms: float  # normalisation to best pairs, by the card's clock
    copy_ms: float
    overlapped_images_per_second: float


class Bench:
    """One model in one number type, with batches of noise of its bucket."""

    def __init__(self, name: str, precision: str, most: int, options: argparse.Namespace) -> None:
        device = torch.device(options.device)
        self.padded = tuple(options.size) if options.size else _BUCKETS[name]
        self.repeats = options.repeats
        torch.manual_seed(0)
        if name == "default":
            detector, info = load_detector(resolve_model("default"), str(device))
            config = info.config
        else:
            config = VARIANTS[name]
            detector = build_detector(config).eval().to(device)
        with torch.inference_mode():
            network = InferenceDetector(detector, _DTYPES[precision]).eval()
        self.predictor = Predictor(network, config, str(device))
        pixels = most * self.padded[0] * self.padded[1]
        self.pipeline = GpuPipeline(
            self.predictor, _card(device), PipelineLimits(most, pixels), most_graphs=64
        )
        rng = np.random.default_rng(0)
        height, width = self.padded
        sizes = [(height - 8 * (i % 3), width - 16 * (i % 2)) for i in range(2 * most)]
        self.pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]

    def run(self, pictures: Pictures) -> DeviceAnswer:
        """One batch, waited for."""
        return self.pipeline.begin(pictures, self.padded, _sizes(pictures)).finish()

    def overlapped(self, batches: Sequence[Pictures]) -> Iterator[DeviceAnswer]:
        """Each batch begun before the one before has ended."""
        under_way = None
        for pictures in batches:
            following = self.pipeline.begin(pictures, self.padded, _sizes(pictures))
            if under_way is not None:
                yield under_way.finish()
            under_way = following
        if under_way is not None:
            yield under_way.finish()

    def timed(self, batch: int) -> Timed:
        """Times batches of that size."""
        pictures = self.pictures[:batch]
        answers, times = [], []
        for _ in range(self.repeats + 2):
            started = time.perf_counter()
            answers.append(self.run(pictures))
            times.append(1000 * (time.perf_counter() - started))
        started = time.perf_counter()
        list(self.overlapped([pictures] * _BATCHES_IN_A_ROW))
        seconds = time.perf_counter() - started
        return Timed(
            round(statistics.median(times[2:]), 3),
            round(statistics.median(answer.forward_ms for answer in answers[2:]), 3),
            round(statistics.median(answer.copy_ms for answer in answers[2:]), 3),
            round(_BATCHES_IN_A_ROW * batch / seconds, 1),
        )

    def compared(self, batch: int) -> dict[str, Any]:
        """Launches, replays and overlapped replays of two batches; records on the way."""
        batches = [self.pictures[:batch], self.pictures[batch : 2 * batch]]
        launched = [self.run(pictures) for pictures in batches]
        again = [self.run(pictures) for pictures in batches]
        recorded = self.pipeline.record(BatchShape(self.padded, batch))
        replayed = [self.run(pictures) for pictures in batches]
        overlapped = list(self.overlapped(batches))
        return {
            "recorded": recorded,
            "launches_repeat_to_the_bit": _largest(launched, again) == (0.0, 0.0),
            "replay_score_box": _largest(launched, replayed),
            "overlapped_score_box": _largest(replayed, overlapped),
        }


def main() -> int:
    """Compares and times; 1 where a replay differs or cannot be."""
    parser = argparse.ArgumentParser(description="CUDA graphs against launches.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", choices=_BUCKETS, default=list(_BUCKETS))
    parser.add_argument("--precisions", nargs="+", choices=_DTYPES, default=["fp16", "fp32"])
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the bucket")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    left_out: list[str] = []
    for precision in options.precisions:
        for name in options.models:
            _measure(name, precision, options, deadline, rows, failures, left_out)
            results = {"rows": rows, "left_out": left_out, "failures": failures}
            write(options.json, torch.device(options.device), results)  # each time: what there is
    return 1 if failures else 0


def _measure(  # noqa: PLR0913, PLR0917 - what it adds to, one by one
    name: str,
    precision: str,
    options: argparse.Namespace,
    deadline: float,
    rows: list[dict[str, Any]],
    failures: list[str],
    left_out: list[str],
) -> None:
    """One model in one number type; the largest batch first, as graphs share its memory."""
    bench = Bench(name, precision, max(options.batches), options)
    for batch in sorted(options.batches, reverse=True):
        label = f"{name} {precision} batch {batch}"
        if time.monotonic() >= deadline:
            left_out.append(label)
            continue
        try:
            bench.run(bench.pictures[:batch])
            launched = bench.timed(batch)
            found = bench.compared(batch)
            replayed = bench.timed(batch) if found["recorded"] else None
        except torch.OutOfMemoryError:
            left_out.append(f"{label}: no memory")
            bench.pipeline.wait()
            torch.cuda.empty_cache()
            continue
        row = {"model": name, "precision": precision, "batch": batch, "padded": bench.padded}
        row |= {**found, "launched": vars(launched)}
        row["replayed"] = None if replayed is None else vars(replayed)
        if replayed is None and not bench.pipeline.graphs.given_up:
            left_out.append(f"{label}: no memory for a graph")
        elif replayed is None:
            failures.append(f"{label}: not recorded")
        else:
            row["ratio"] = round(launched.whole_ms / replayed.whole_ms, 2)
        for way in ("replay_score_box", "overlapped_score_box"):
            if not found[way][0] <= _SCORE_BOUND:
                failures.append(f"{label}: {way} {found[way]}")
        rows.append(row)
        print(row, flush=True)


def _largest(ours: list[DeviceAnswer], theirs: list[DeviceAnswer]) -> tuple[float, float]:
    """Largest differences of scores, and of boxes (pixels) where the class ids agree."""
    scores, boxes = 0.0, 0.0
    for one, other in zip(ours, theirs, strict=True):
        for found, expected in zip(one.detections, other.detections, strict=True):
            apart = np.abs(found.scores - expected.scores)
            scores = max(scores, float(np.nan_to_num(apart, nan=np.inf).max()))
            boxes = max(boxes, _box_difference(found, expected))
    return scores, boxes


def _box_difference(found: Detections, expected: Detections) -> float:
    same = (found.labels == expected.labels) & (found.scores == expected.scores)
    apart = np.abs(found.boxes_xyxy - expected.boxes_xyxy)[same]
    return float(apart.max()) if len(apart) else 0.0


def _sizes(pictures: Pictures) -> list[tuple[int, int]]:
    return [(picture.shape[0], picture.shape[1]) for picture in pictures]


def _card(device: torch.device) -> Card:
    if device.type == "cuda":
        return CudaCard(device)
    from tests.support.standin_card import StandInCard  # noqa: PLC0415 - tries the script out

    return StandInCard()


if __name__ == "__main__":
    sys.exit(main())
