"""The engine's GPU pipeline, as it serves: the inference form, CUDA graphs, overlapped batches.

    python -m benchmarks.gpu.pipeline [--models r50 default] [--seconds 90] [--results FILE]

For each model and batch size, on noise in the largest shape bucket: whether replays and overlapped
batches have the results of launches; then medians of one batch from pixels on the host to
detections (and of the GPU's time for it), and images per second if each batch is begun before the
previous one has ended. Then the kernels that take most of the GPU's time. The R50 network has
random weights. Exits with status 1 if results differ or no graph was recorded.
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

from benchmarks.gpu.results import Results
from model import VARIANTS, build_detector, ops
from model.detections import Detections
from model.network import cuda_fusion
from model.network.inference import prepare_for_inference
from model.predictor import Predictor
from model.weights.checkpoint import load_detector
from model.weights.info import resolve_model
from service.engine.cuda_card import Card, CudaCard
from service.engine.device import BatchShape, DeviceResult
from service.engine.gpu_pipeline import GpuPipeline, PipelineLimits
from service.engine.load import prepare_on_gpu

R50 = "lite-dino-r50-h3l1-2p1x3"
_MODELS = {"r50": (800, 1333), "default": (384, 512)}  # sizes of the images, without padding
_STRIDE = 64  # of the shape buckets of both
_SCORE_BOUND = 1e-3  # replay against launches of the same kernels
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_OVERLAPPED_BATCHES = 6
_PROFILED_BATCH = 8
_SHOWN_KERNELS = 30

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
        self.repeats = options.repeats
        height, width = options.size or _MODELS[name]
        self.padded = (-(-height // _STRIDE) * _STRIDE, -(-width // _STRIDE) * _STRIDE)
        torch.manual_seed(0)
        if name == "default":
            detector, info = load_detector(resolve_model("default"), str(device))
            config = info.config
        else:
            config = VARIANTS[R50]
            detector = build_detector(config).eval().to(device)
        dtype = _DTYPES[precision]
        if device.type == "cuda":
            network = prepare_on_gpu(detector, dtype, options.device)
        else:
            network = prepare_for_inference(detector, dtype)
        self.predictor = Predictor(network, config, str(device))
        pixels = most * self.padded[0] * self.padded[1]
        self.pipeline = GpuPipeline(
            self.predictor, _card(device), PipelineLimits(most, pixels), max_graphs=64
        )
        rng = np.random.default_rng(0)
        self.images = [
            rng.integers(0, 256, (height - 8 * (i % 3), width - 16 * (i % 2), 3), dtype=np.uint8)
            for i in range(2 * most)
        ]

    def run(self, images: Images) -> DeviceResult:
        """Runs one batch to its end."""
        return self.pipeline.begin(images, self.padded, _sizes(images)).finish()

    def release(self) -> None:
        """Ends what a failed measurement has left in flight."""
        self.pipeline.wait()
        for buffers in self.pipeline._sets:
            buffers.in_use = False

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
    parser.add_argument("--models", nargs="+", choices=_MODELS, default=list(_MODELS))
    parser.add_argument("--precisions", nargs="+", choices=_DTYPES)
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the images")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 8, 1])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    on_gpu = torch.device(options.device).type == "cuda"
    precisions = options.precisions or (["fp16", "fp32"] if on_gpu else ["fp32"])
    deadline = time.monotonic() + options.seconds
    results = Results(options.results, torch.device(options.device))
    for precision in precisions:
        for name in options.models:
            _measure(name, precision, options, deadline, results)
    failures = ops.kernel_failures(options.device)
    results.row(kernels=ops.implementation_name(options.device), kernel_failures=failures)
    return results.exit_status


def _measure(
    name: str, precision: str, options: argparse.Namespace, deadline: float, results: Results
) -> None:
    """One model in one precision; the largest batch first, because graphs share its memory."""
    if time.monotonic() >= deadline:
        results.left_out(f"{name} {precision}")
        return
    bench = None
    with results.guarded(f"{name} {precision}"):
        bench = Bench(name, precision, max(options.batches), options)
    if bench is None:
        return
    for batch in sorted(options.batches, reverse=True):
        label = f"{name} {precision} batch {batch}"
        if time.monotonic() >= deadline:
            results.left_out(label)
            continue
        with results.guarded(label):
            _measure_batch(bench, {"model": name, "precision": precision, "batch": batch}, results)
        bench.release()
    if options.device.startswith("cuda") and time.monotonic() < deadline:
        batch = min(_PROFILED_BATCH, max(options.batches))
        with results.guarded(f"{name} {precision} kernel times"):
            kernels = _kernel_times(bench, batch)
            results.row(model=name, precision=precision, batch=batch, kernel_times=kernels)


def _measure_batch(bench: Bench, label: dict[str, Any], results: Results) -> None:
    """One batch size: the replay first, which is what serves."""
    batch = label["batch"]
    started = time.perf_counter()
    bench.run(bench.images[:batch])
    first_ms = round(1000 * (time.perf_counter() - started), 1)
    found = bench.compared(batch)
    row = {**label, "padded": bench.padded, "fused": sorted(cuda_fusion.enabled())}
    row |= {"first_batch_ms": first_ms, **found}
    if found["recorded"]:
        row["replayed"] = vars(bench.timed(batch))
        if torch.cuda.is_available():
            row["peak_gigabytes"] = round(torch.cuda.max_memory_reserved() / 1e9, 2)
    results.row(**row)
    text = " ".join(map(str, label.values()))
    if not found["recorded"] and bench.pipeline.graphs.stopped:
        results.fail(f"{text}: no graph recorded")
    elif not found["recorded"]:
        results.left_out(f"{text}: out of memory for a graph")
    for key in ("replay_score_box", "overlapped_score_box"):
        if not found[key][0] <= _SCORE_BOUND:
            results.fail(f"{text}: {key} {found[key]}")
    results.row(**label, launched=vars(_launched(bench, batch)))


def _launched(bench: Bench, batch: int) -> Timed:
    """Times batches without their graph."""
    graphs, bench.pipeline.graphs._graphs = bench.pipeline.graphs._graphs, {}
    try:
        return bench.timed(batch)
    finally:
        bench.pipeline.graphs._graphs = graphs


def _kernel_times(bench: Bench, batch: int) -> list[dict[str, Any]]:
    """The kernels that take most of the GPU's time for a replayed batch."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        bench.run(bench.images[:batch])
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    return [
        {
            "name": event.key[:120],
            "count": event.count,
            "us": round(event.self_device_time_total, 1),
        }
        for event in events[:_SHOWN_KERNELS]
    ]


def _largest(ours: list[DeviceResult], theirs: list[DeviceResult]) -> tuple[float, float]:
    """Largest differences of scores, and of boxes (pixels) where class ids and scores agree."""
    scores, boxes = 0.0, 0.0
    for one, other in zip(ours, theirs, strict=True):
        for found, expected in zip(one.detections, other.detections, strict=True):
            scores = max(scores, _score_difference(found, expected))
            boxes = max(boxes, _box_difference(found, expected))
    return scores, boxes


def _score_difference(found: Detections, expected: Detections) -> float:
    """A detection that only one of them has counts with its whole score: one was a duplicate."""
    padded = np.zeros((2, max(len(found), len(expected))), dtype=np.float32)
    padded[0, : len(found)], padded[1, : len(expected)] = found.scores, expected.scores
    difference = np.abs(padded[0] - padded[1])
    return float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))


def _box_difference(found: Detections, expected: Detections) -> float:
    both = slice(min(len(found), len(expected)))
    same = (found.labels[both] == expected.labels[both]) & (
        found.scores[both] == expected.scores[both]
    )
    differences = np.abs(found.boxes_xyxy[both] - expected.boxes_xyxy[both])[same]
    return float(differences.max()) if len(differences) else 0.0


def _sizes(images: Images) -> list[tuple[int, int]]:
    return [(image.shape[0], image.shape[1]) for image in images]


def _card(device: torch.device) -> Card:
    if device.type == "cuda":
        return CudaCard(device)
    from tests.support.standin_card import StandInCard  # noqa: PLC0415 - to try this script

    return StandInCard()


if __name__ == "__main__":
    sys.exit(main())
