"""The engine's GPU pipeline: CUDA graphs against launches, overlapped batches against single ones.

    python -m benchmarks.gpu.pipeline [--device cuda] [--seconds 90] [--json FILE]

For each model, precision and batch size, on noise: compares the results of graph replays with
those of launches, and of overlapped batches with single batches; then takes medians of one batch
from pixels on the host to detections (and of the GPU's time for it), and images per second if each
batch is begun before the previous one has ended. Exits with status 1 if results differ or no graph
was recorded. Measurements that do not fit into the time are listed as left out.
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
from model.network.inference import prepare_for_inference
from model.predictor import Predictor
from model.weights.checkpoint import load_detector
from model.weights.info import resolve_model
from service.engine.cuda_card import Card, CudaCard
from service.engine.device import BatchShape, DeviceResult
from service.engine.gpu_pipeline import GpuPipeline, PipelineLimits

_R50 = "lite-dino-r50-h3l1-2p1x3"  # with random weights
_BUCKETS = {_R50: (832, 1088), "default": (384, 512)}
_SCORE_BOUND = 1e-3  # replay against launches of the same kernels
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_OVERLAPPED_BATCHES = 6

Images = list[npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Timed:
    """Medians in milliseconds, and images per second."""

    whole_ms: float
    card_ms: float  # normalisation to top-k, by the GPU's clock
    copy_ms: float
    overlapped_images_per_second: float


class Bench:
    """One model in one precision, with images of noise for its shape bucket."""

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
            network = prepare_for_inference(detector, _DTYPES[precision])
        self.predictor = Predictor(network, config, str(device))
        pixels = most * self.padded[0] * self.padded[1]
        self.pipeline = GpuPipeline(
            self.predictor, _card(device), PipelineLimits(most, pixels), max_graphs=64
        )
        rng = np.random.default_rng(0)
        height, width = self.padded
        sizes = [(height - 8 * (i % 3), width - 16 * (i % 2)) for i in range(2 * most)]
        self.images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]

    def run(self, images: Images) -> DeviceResult:
        """Runs one batch to its end."""
        return self.pipeline.begin(images, self.padded, _sizes(images)).finish()

    def overlapped(self, batches: Sequence[Images]) -> Iterator[DeviceResult]:
        """Begins each batch before the previous one has ended."""
        in_flight = None
        for images in batches:
            following = self.pipeline.begin(images, self.padded, _sizes(images))
            if in_flight is not None:
                yield in_flight.finish()
            in_flight = following
        if in_flight is not None:
            yield in_flight.finish()

    def timed(self, batch: int) -> Timed:
        """Times batches of this size."""
        images = self.images[:batch]
        results, times = [], []
        for _ in range(self.repeats + 2):
            started = time.perf_counter()
            results.append(self.run(images))
            times.append(1000 * (time.perf_counter() - started))
        started = time.perf_counter()
        list(self.overlapped([images] * _OVERLAPPED_BATCHES))
        seconds = time.perf_counter() - started
        return Timed(
            round(statistics.median(times[2:]), 3),
            round(statistics.median(one.forward_ms for one in results[2:]), 3),
            round(statistics.median(one.copy_ms for one in results[2:]), 3),
            round(_OVERLAPPED_BATCHES * batch / seconds, 1),
        )

    def compared(self, batch: int) -> dict[str, Any]:
        """Compares launches, replays and overlapped replays of two batches; records a graph."""
        batches = [self.images[:batch], self.images[batch : 2 * batch]]
        launched = [self.run(images) for images in batches]
        again = [self.run(images) for images in batches]
        recorded = self.pipeline.record(BatchShape(self.padded, batch))
        replayed = [self.run(images) for images in batches]
        overlapped = list(self.overlapped(batches))
        return {
            "recorded": recorded,
            "launches_repeat_to_the_bit": _largest(launched, again) == (0.0, 0.0),
            "replay_score_box": _largest(launched, replayed),
            "overlapped_score_box": _largest(replayed, overlapped),
        }


def main() -> int:
    """Compares and times; returns 1 if a replay differs or is not possible."""
    parser = argparse.ArgumentParser(description="CUDA graphs against launches.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", choices=_BUCKETS, default=list(_BUCKETS))
    parser.add_argument("--precisions", nargs="+", choices=_DTYPES, default=["fp16", "fp32"])
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the shape bucket")
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
            write(options.json, torch.device(options.device), results)  # the results so far
    return 1 if failures else 0


def _measure(  # noqa: PLR0913, PLR0917 - the lists that it appends to
    name: str,
    precision: str,
    options: argparse.Namespace,
    deadline: float,
    rows: list[dict[str, Any]],
    failures: list[str],
    left_out: list[str],
) -> None:
    """One model in one precision; the largest batch first, because graphs share its memory."""
    bench = Bench(name, precision, max(options.batches), options)
    for batch in sorted(options.batches, reverse=True):
        label = f"{name} {precision} batch {batch}"
        if time.monotonic() >= deadline:
            left_out.append(label)
            continue
        try:
            bench.run(bench.images[:batch])
            launched = bench.timed(batch)
            found = bench.compared(batch)
            replayed = bench.timed(batch) if found["recorded"] else None
        except torch.OutOfMemoryError:
            left_out.append(f"{label}: out of memory")
            bench.pipeline.wait()
            torch.cuda.empty_cache()
            continue
        row = {"model": name, "precision": precision, "batch": batch, "padded": bench.padded}
        row |= {**found, "launched": vars(launched)}
        row["replayed"] = None if replayed is None else vars(replayed)
        if replayed is None and not bench.pipeline.graphs.stopped:
            left_out.append(f"{label}: out of memory for a graph")
        elif replayed is None:
            failures.append(f"{label}: no graph recorded")
        else:
            row["ratio"] = round(launched.whole_ms / replayed.whole_ms, 2)
        for key in ("replay_score_box", "overlapped_score_box"):
            if not found[key][0] <= _SCORE_BOUND:
                failures.append(f"{label}: {key} {found[key]}")
        rows.append(row)
        print(row, flush=True)


def _largest(ours: list[DeviceResult], theirs: list[DeviceResult]) -> tuple[float, float]:
    """Largest differences of scores, and of boxes (pixels) where class ids and scores agree."""
    scores, boxes = 0.0, 0.0
    for one, other in zip(ours, theirs, strict=True):
        for found, expected in zip(one.detections, other.detections, strict=True):
            difference = np.abs(found.scores - expected.scores)
            scores = max(scores, float(np.nan_to_num(difference, nan=np.inf).max()))
            boxes = max(boxes, _box_difference(found, expected))
    return scores, boxes


def _box_difference(found: Detections, expected: Detections) -> float:
    same = (found.labels == expected.labels) & (found.scores == expected.scores)
    differences = np.abs(found.boxes_xyxy - expected.boxes_xyxy)[same]
    return float(differences.max()) if len(differences) else 0.0


def _sizes(images: Images) -> list[tuple[int, int]]:
    return [(image.shape[0], image.shape[1]) for image in images]


def _card(device: torch.device) -> Card:
    if device.type == "cuda":
        return CudaCard(device)
    from tests.support.standin_card import StandInCard  # noqa: PLC0415 - to test this script

    return StandInCard()


if __name__ == "__main__":
    sys.exit(main())
