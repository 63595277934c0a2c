"""Compares detections of single images with those in batches, and the time of both.

    python -m benchmarks.serving.batch_invariance [--batches 500] [--device cpu] [--output FOLDER]

Images are random crops of the sample photos, resized by the model's input rule. Each image is run
alone; then random batches (2 to 8 images of one shape bucket) are run, and every detection above
0.05 is compared with its match in the single run. "as served" is `Predictor.predict`; "as one"
sends the whole batch through the network, which a CPU does not do (see `model.predictor`). The R50
network has random weights, with heads scaled so that scores above 0.05 exist, and is compared at a
small input size; it is timed at 800 x 1066. Writes batch-invariance.json and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.random_r50 import R50_SIDES, random_r50_detector
from benchmarks.report import RESULTS, conditions, table, write_report
from benchmarks.serving.images import SAMPLES
from model.detections import Detections
from model.geometry import padded_size, resized_size
from model.network.inference import prepare_for_inference
from model.predictor import Predictor
from model.weights.info import resolve_model
from service.cpus import usable_cpus
from service.engine.load import load_predictor

_LEAST_SCORE = 0.05
_SCORE_BOUND, _BOX_BOUND = 1e-5, 0.05  # the documented bounds; boxes in pixels
_LARGEST_BATCH = 8

Bucket = tuple[int, int]
Run = Callable[[list["ResizedImage"], Bucket], list[Detections]]


@dataclass(frozen=True)
class ResizedImage:
    """The pixels of a resized image, and the size (height, width) that its boxes refer to."""

    pixels: npt.NDArray[np.uint8]
    original_size: tuple[int, int]


@dataclass
class Comparison:
    """Batches of one model on one path, compared with the results of single images."""

    model: str
    path: str
    batches: int = 0
    images: int = 0
    detections: int = 0  # above 0.05, summed over the batches
    without_match: int = 0  # no detection of the same class in the batch's result
    beyond_bound: int = 0
    largest_score_difference: float = 0.0
    largest_box_difference: float = 0.0
    images_bitwise_equal: int = 0


@dataclass(frozen=True)
class Timing:
    """One batch as one, and the same images one by one; medians of one run."""

    model: str
    padded: Bucket
    batch: int
    as_one_ms: float
    one_by_one_ms: float
    ratio: float


def random_images(predictor: Predictor, count: int, seed: int) -> dict[Bucket, list[ResizedImage]]:
    """Random crops of the sample photos, by shape bucket."""
    rng = np.random.default_rng(seed)
    sources = [Image.open(path).convert("RGB") for path in sorted(SAMPLES.glob("*.jpg"))]
    config = predictor.config
    found: dict[Bucket, list[ResizedImage]] = {}
    for index in range(count):
        source = sources[index % len(sources)]
        width, height = (int(side * rng.uniform(0.4, 1.0)) for side in source.size)
        left, top = (
            int(rng.integers(0, whole - part + 1))
            for whole, part in zip(source.size, (width, height), strict=True)
        )
        crop = source.crop((left, top, left + width, top + height))
        size = resized_size(height, width, config.shortest_side, config.longest_side)
        pixels = np.asarray(crop.resize(size[::-1], Image.Resampling.BILINEAR))
        bucket = padded_size(*size, config.bucket_stride)
        found.setdefault(bucket, []).append(ResizedImage(pixels, (height, width)))
    return found


def as_served(predictor: Predictor) -> Run:
    """Runs batches as the engine does."""

    def run(batch: list[ResizedImage], bucket: Bucket) -> list[Detections]:
        sizes = [image.original_size for image in batch]
        return predictor.predict([image.pixels for image in batch], bucket, sizes)

    return run


def as_one(predictor: Predictor) -> Run:
    """Sends whole batches through the network, on any device."""

    def run(batch: list[ResizedImage], bucket: Bucket) -> list[Detections]:
        assembled = predictor.assemble([image.pixels for image in batch], bucket)
        sizes = [image.original_size for image in batch]
        return predictor.postprocess(predictor.forward(*assembled), sizes)

    return run


def compare(
    predictor: Predictor, name: str, batches: int, whole_batches: int, pool_size: int = 64
) -> list[Comparison]:
    """Compares random batches with single images, on both paths."""
    pool = random_images(predictor, pool_size, seed=1)
    serve = as_served(predictor)
    alone = {
        bucket: [serve([image], bucket)[0] for image in found] for bucket, found in pool.items()
    }
    buckets = [bucket for bucket, found in pool.items() if len(found) > 1]
    paths = ((serve, "as served", batches), (as_one(predictor), "as one", whole_batches))
    rows = []
    for run, path, count in paths:
        rng = np.random.default_rng(2)
        row = Comparison(name, path, batches=count)
        for _ in range(count):
            bucket = buckets[rng.integers(len(buckets))]
            chosen = rng.integers(0, len(pool[bucket]), rng.integers(2, _LARGEST_BATCH + 1))
            results = run([pool[bucket][index] for index in chosen], bucket)
            for index, result in zip(chosen, results, strict=True):
                _count(row, alone[bucket][index], result)
        rows.append(row)
        print(json.dumps(asdict(row)), flush=True)
    return rows


def _count(row: Comparison, alone: Detections, batched: Detections) -> None:
    """Compares each detection above 0.05 with the nearest one in the batch's result."""
    row.images += 1
    same = len(alone) == len(batched) and all(
        np.array_equal(getattr(alone, field), getattr(batched, field))
        for field in ("scores", "labels", "boxes_xyxy")
    )
    row.images_bitwise_equal += same
    for score, label, box in zip(alone.scores, alone.labels, alone.boxes_xyxy, strict=True):
        if score <= _LEAST_SCORE:
            continue
        row.detections += 1
        same_class = batched.labels == label
        if not same_class.any():
            row.without_match += 1
            continue
        scores = np.abs(batched.scores[same_class] - score)
        boxes = np.abs(batched.boxes_xyxy[same_class] - box).max(-1)
        nearest = np.argmin(np.maximum(scores / _SCORE_BOUND, boxes / _BOX_BOUND))
        row.beyond_bound += bool(scores[nearest] > _SCORE_BOUND or boxes[nearest] > _BOX_BOUND)
        row.largest_score_difference = max(row.largest_score_difference, float(scores[nearest]))
        row.largest_box_difference = max(row.largest_box_difference, float(boxes[nearest]))


def measure(
    predictor: Predictor, name: str, size: tuple[int, int], images: int, repeats: int
) -> Timing:
    """Times a batch as one and one by one, in alternation."""
    rng = np.random.default_rng(3)
    bucket = padded_size(*size, predictor.config.bucket_stride)
    batch = [
        ResizedImage(rng.integers(0, 256, (*size, 3), dtype=np.uint8), size) for _ in range(images)
    ]
    whole = as_one(predictor)
    sides: tuple[Callable[[], object], ...] = (
        lambda: whole(batch, bucket),
        lambda: [whole([image], bucket) for image in batch],
    )
    for side in sides:
        side()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, taken in zip(sides, times, strict=True):
            started = time.perf_counter()
            side()
            taken.append((time.perf_counter() - started) * 1000)
    one, single = map(statistics.median, times)
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    row = Timing(name, bucket, len(batch), round(one, 1), round(single, 1), round(ratio, 2))
    print(json.dumps(asdict(row)), flush=True)
    return row


def default_predictor(device: str) -> Predictor:
    """The default model in the form that serves."""
    predictor, _ = load_predictor(resolve_model("default"), device, torch.get_num_threads())
    return predictor


def random_r50(device: str) -> Predictor:
    """`random_r50_detector` in the form that serves."""
    detector = random_r50_detector().to(device)
    return Predictor(prepare_for_inference(detector), detector.config, device)


def _comparison_table(rows: list[Comparison]) -> str:
    columns = ["model", "path", "batches", "detections", "largest score difference", "box, px"]
    cells = [
        (
            row.model,
            row.path,
            f"{row.batches}",
            f"{row.detections}",
            f"{row.largest_score_difference:.2g}",
            f"{row.largest_box_difference:.2g}",
            f"{row.beyond_bound + row.without_match}",
            f"{row.images_bitwise_equal} of {row.images}",
        )
        for row in rows
    ]
    return table([*columns, "beyond the bound", "bitwise equal images"], cells, texts=2)


def _timing_table(rows: list[Timing]) -> str:
    columns = ("model", "padded", "batch", "as one, ms", "one by one, ms", "ratio")
    cells = [
        (
            row.model,
            f"{row.padded[0]} x {row.padded[1]}",
            f"{row.batch}",
            f"{row.as_one_ms}",
            f"{row.one_by_one_ms}",
            f"{row.ratio}",
        )
        for row in rows
    ]
    return table(columns, cells, texts=2)


def main() -> None:
    """Compares, times and writes the report."""
    parser = argparse.ArgumentParser(description="Compare batches with single images.")
    parser.add_argument("--batches", type=int, default=500)
    parser.add_argument("--r50-batches", type=int, default=500)
    parser.add_argument("--whole-batches", type=int, default=50, help="batches run as one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "serving")
    options = parser.parse_args()
    document = conditions()
    torch.set_num_threads(options.threads)
    rows, times = [], []
    default, r50 = default_predictor(options.device), random_r50(options.device)
    r50_name = f"R50, random weights, {R50_SIDES[0]}..{R50_SIDES[1]} px"
    for predictor, name, batches in (
        (default, "default", options.batches),
        (r50, r50_name, options.r50_batches),
    ):
        rows += compare(predictor, name, batches, options.whole_batches)
    sides = default.config.shortest_side, default.config.longest_side
    size = resized_size(3000, 4000, *sides)
    times.append(measure(default, "default", size, _LARGEST_BATCH, options.repeats))
    times.append(
        measure(r50, "R50", (800, 1066), _LARGEST_BATCH // 2, max(1, options.repeats // 3))
    )
    document |= {"device": options.device, "threads": options.threads}
    document |= {"torch": torch.__version__, "compared": [asdict(row) for row in rows]}
    document["timed"] = [asdict(row) for row in times]
    sections = [
        f"Device {options.device}, {options.threads} threads, torch {torch.__version__}. Bounds: "
        f"scores within {_SCORE_BOUND:g} and boxes within {_BOX_BOUND:g} px for every detection "
        "above 0.05.\n",
        _comparison_table(rows),
        "A batch as one / the same images one by one (ratio above 1: batching takes longer):\n",
        _timing_table(times),
    ]
    title = "Single images and batches"
    write_report(options.output / "batch-invariance", title, document, sections)


if __name__ == "__main__":
    main()
