"""Whether a photo's answer depends on the company it came in, and what batches cost or save.

    python -m benchmarks.serving.batch_invariance [--batches 500] [--device cpu] [--output FOLDER]

Pictures are random crops of the sample photos, through the input rule. Each is answered alone
first; then random batches (2 to 8 pictures of one bucket) are answered, and every detection above
0.05 is compared with its twin of before. "as served" is `Predictor.predict`; "as one" sends the
whole batch through the network, which a CPU does not do (see `model.predictor`). The R50 network
has random weights, with heads scaled so that scores above 0.05 exist, and is compared at a small
input size; it is timed at 800 x 1066. Writes batch-invariance.json and .md.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from model import VARIANTS, build_detector
from model.detections import Detections
from model.geometry import padded_size, resized_size
from model.inference.network import InferenceDetector
from model.network.detector import LiteDETR
from model.predictor import Predictor
from model.weights.info import resolve_model
from service.cpus import usable_cpus
from service.engine.torch_device import load_predictor

_ROOT = Path(__file__).resolve().parents[2]
_SAMPLES = _ROOT / "service" / "rest" / "static" / "samples"
_LEAST_SCORE = 0.05
_SCORE_BOUND, _BOX_BOUND = 1e-5, 0.05  # what is promised; boxes in pixels
_LARGEST_BATCH = 8
_R50 = "lite-dino-r50-h3l1-2p1x3"
_R50_SIDES = (192, 256)  # of the comparison; 500 batches at full size would take half a day
_HEADERS = ("model", "path", "batches", "detections", "largest score difference", "box, px")

Bucket = tuple[int, int]
Run = Callable[[list["Picture"], Bucket], list[Detections]]


@dataclass(frozen=True)
class Picture:
    """A resized picture and the size that its boxes refer to."""

    pixels: npt.NDArray[np.uint8]
    original_size: tuple[int, int]


@dataclass
class Compared:
    """Batches of one model on one path, against its answers to single pictures."""

    model: str
    path: str
    batches: int = 0
    images: int = 0
    detections: int = 0  # above 0.05, each time
    without_twin: int = 0  # no detection of that class in the other answer
    beyond_bound: int = 0
    largest_score_difference: float = 0.0
    largest_box_difference: float = 0.0
    images_bitwise_equal: int = 0


@dataclass(frozen=True)
class Timed:
    """One batch as one, over the same pictures one by one; medians of one run."""

    model: str
    padded: Bucket
    batch: int
    as_one_ms: float
    one_by_one_ms: float
    ratio: float


def pictures(predictor: Predictor, count: int, seed: int) -> dict[Bucket, list[Picture]]:
    """Random crops of the sample photos, by bucket."""
    rng = np.random.default_rng(seed)
    sources = [Image.open(path).convert("RGB") for path in sorted(_SAMPLES.glob("*.jpg"))]
    config = predictor.config
    found: dict[Bucket, list[Picture]] = {}
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
        found.setdefault(bucket, []).append(Picture(pixels, (height, width)))
    return found


def as_served(predictor: Predictor) -> Run:
    """A batch the way the engine runs it."""

    def run(batch: list[Picture], bucket: Bucket) -> list[Detections]:
        sizes = [picture.original_size for picture in batch]
        return predictor.predict([picture.pixels for picture in batch], bucket, sizes)

    return run


def as_one(predictor: Predictor) -> Run:
    """The whole batch through the network, on whatever device."""

    def run(batch: list[Picture], bucket: Bucket) -> list[Detections]:
        assembled = predictor.assemble([picture.pixels for picture in batch], bucket)
        sizes = [picture.original_size for picture in batch]
        return predictor.postprocess(predictor.forward(*assembled), sizes)

    return run


def compare(
    predictor: Predictor, name: str, batches: int, whole_batches: int, pool_size: int = 64
) -> list[Compared]:
    """Random batches against single answers, on both paths."""
    pool = pictures(predictor, pool_size, seed=1)
    serve = as_served(predictor)
    alone = {
        bucket: [serve([picture], bucket)[0] for picture in found] for bucket, found in pool.items()
    }
    buckets = [bucket for bucket, found in pool.items() if len(found) > 1]
    paths = ((serve, "as served", batches), (as_one(predictor), "as one", whole_batches))
    rows = []
    for run, path, count in paths:
        rng = np.random.default_rng(2)
        row = Compared(name, path, batches=count)
        for _ in range(count):
            bucket = buckets[rng.integers(len(buckets))]
            chosen = rng.integers(0, len(pool[bucket]), rng.integers(2, _LARGEST_BATCH + 1))
            answers = run([pool[bucket][index] for index in chosen], bucket)
            for index, answer in zip(chosen, answers, strict=True):
                _tally(row, alone[bucket][index], answer)
        rows.append(row)
        print(json.dumps(asdict(row)), flush=True)
    return rows


def _tally(row: Compared, alone: Detections, batched: Detections) -> None:
    """Compares each detection above 0.05 with its nearest twin in the batch's answer."""
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
        twins = batched.labels == label
        if not twins.any():
            row.without_twin += 1
            continue
        scores = np.abs(batched.scores[twins] - score)
        boxes = np.abs(batched.boxes_xyxy[twins] - box).max(-1)
        nearest = np.argmin(np.maximum(scores / _SCORE_BOUND, boxes / _BOX_BOUND))
        row.beyond_bound += bool(scores[nearest] > _SCORE_BOUND or boxes[nearest] > _BOX_BOUND)
        row.largest_score_difference = max(row.largest_score_difference, float(scores[nearest]))
        row.largest_box_difference = max(row.largest_box_difference, float(boxes[nearest]))


def measure(
    predictor: Predictor, name: str, size: tuple[int, int], images: int, repeats: int
) -> Timed:
    """Times a batch as one and one by one; both take turns."""
    rng = np.random.default_rng(3)
    bucket = padded_size(*size, predictor.config.bucket_stride)
    batch = [Picture(rng.integers(0, 256, (*size, 3), dtype=np.uint8), size) for _ in range(images)]
    whole = as_one(predictor)
    sides: tuple[Callable[[], object], ...] = (
        lambda: whole(batch, bucket),
        lambda: [whole([picture], bucket) for picture in batch],
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
    row = Timed(name, bucket, len(batch), round(one, 1), round(single, 1), round(ratio, 2))
    print(json.dumps(asdict(row)), flush=True)
    return row


def default_predictor(device: str) -> Predictor:
    """The model that is served unless another is named, as it is served."""
    predictor, _ = load_predictor(resolve_model("default"), device, torch.get_num_threads())
    return predictor


def random_r50_detector() -> LiteDETR:
    """The full network with random weights whose class heads give scores of all sizes."""
    config = replace(VARIANTS[_R50], shortest_side=_R50_SIDES[0], longest_side=_R50_SIDES[1])
    torch.manual_seed(0)
    detector = build_detector(config).eval()
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for head in (detector.class_embed[0], detector.transformer.enc_out_class_embed):
            assert isinstance(head, nn.Linear)
            head.weight.copy_(2 * torch.randn_like(head.weight) / config.d_model**0.5)
            head.bias.fill_(-3.0)
    return detector


def random_r50(device: str) -> Predictor:
    """`random_r50_detector` as the engine would run it."""
    detector = random_r50_detector().to(device)
    with torch.inference_mode():
        network = InferenceDetector(detector).eval()
    return Predictor(network, detector.config, device)


def to_markdown(facts: dict[str, object], rows: list[Compared], times: list[Timed]) -> str:
    """The tables for people."""
    lines = [
        "# An image alone and in a batch",
        "",
        "Made by `python -m benchmarks.serving.batch_invariance`: "
        + ", ".join(f"{key} {value}" for key, value in facts.items())
        + f". Promised: scores within {_SCORE_BOUND:g} and boxes within {_BOX_BOUND:g} px for every"
        " detection above 0.05.",
        "",
        "| " + " | ".join((*_HEADERS, "beyond the bound", "bitwise equal images")) + " |",
        "| --- | --- |" + " ---: |" * 6,
    ]
    lines += [
        f"| {row.model} | {row.path} | {row.batches} | {row.detections} "
        f"| {row.largest_score_difference:.2g} | {row.largest_box_difference:.2g} "
        f"| {row.beyond_bound + row.without_twin} | {row.images_bitwise_equal} of {row.images} |"
        for row in rows
    ]
    lines += [
        "",
        "A batch as one, over the same pictures one by one (a ratio above 1: batches cost time):",
        "",
        "| model | padded | batch | as one, ms | one by one, ms | ratio |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row.model} | {row.padded[0]} x {row.padded[1]} | {row.batch} | {row.as_one_ms} "
        f"| {row.one_by_one_ms} | {row.ratio} |"
        for row in times
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compares, times, prints and writes."""
    parser = argparse.ArgumentParser(description="Compare batches with single images.")
    parser.add_argument("--batches", type=int, default=500)
    parser.add_argument("--r50-batches", type=int, default=500)
    parser.add_argument("--whole-batches", type=int, default=50, help="batches run as one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=_ROOT / "benchmarks/results/serving")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, times = [], []
    default, r50 = default_predictor(options.device), random_r50(options.device)
    r50_name = f"R50, random weights, {_R50_SIDES[0]}..{_R50_SIDES[1]} px"
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
    facts: dict[str, object] = {
        "device": options.device,
        "threads": options.threads,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    record = {**facts, "compared": [asdict(row) for row in rows]}
    record["timed"] = [asdict(row) for row in times]
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / "batch-invariance"
    stem.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    stem.with_suffix(".md").write_text(to_markdown(facts, rows, times))


if __name__ == "__main__":
    main()
