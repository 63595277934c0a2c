"""Whole networks on the CPU, one image: the inference network against plain PyTorch.

    OMP_WAIT_POLICY=passive python -m benchmarks.model.cpu [--repeats 3] [--output FOLDER]

The baseline is `benchmarks.model.plain_pytorch`. Each side runs in its own process, with its own
allocator settings (see `service.engine.host_memory`), and the sides alternate; a ratio is the
median of the rounds' ratios. "CPU" is the process's CPU time, which load on the machine changes
less than wall time. The peak is the memory of the first image above that of the loaded network.
The R50 network has random weights: time does not depend on them. Writes cpu.json and cpu.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import operator
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.model.plain_pytorch import plain_pytorch
from benchmarks.model.turns import Side, peak_mib, take_turns
from benchmarks.random_r50 import random_r50_detector
from benchmarks.report import RESULTS, conditions, table, write_report
from model.geometry import level_shapes, padded_size, resized_size
from model.network.calibration import find_ranges
from model.network.detector import LiteDETR
from model.network.geometry import image_tokens
from model.network.inference import prepare_for_inference
from model.network.int8 import prepare_in_int8
from model.network.precision import INT8
from model.weights.checkpoint import load_detector
from model.weights.info import resolve_model
from service.cpus import usable_cpus
from service.engine.host_memory import keep_freed_memory

_SIDES = ("plain", "fp32", "bf16", "int8")  # the first is the baseline
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_STRIDE = 64
_LEVELS = 4


@dataclass(frozen=True)
class Row:
    """Figures of one model on one side."""

    model: str
    side: str
    wall_ms: float
    cpu_ms: float
    wall_ratio: float  # baseline / this side
    cpu_ratio: float
    peak_mib: float  # above the loaded network
    largest_memory_difference: float  # encoder output, to float64; 0: not measured


def network_of(model: str) -> tuple[LiteDETR, tuple[int, int]]:
    """A detector, and the (height, width) of its images."""
    if model == "default":
        detector, info = load_detector(resolve_model("default"))
        sides = info.config.shortest_side, info.config.longest_side
        return detector, resized_size(3000, 4000, *sides)
    return random_r50_detector(), (800, 1066)


def batch_of(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """One image of noise [1, 3, H, W] in its shape bucket, and its padding mask [1, H, W]."""
    padded = padded_size(*size, _STRIDE)
    mask = torch.ones(1, *padded, dtype=torch.bool)
    mask[:, : size[0], : size[1]] = False
    images = torch.randn(1, 3, *padded, generator=torch.Generator().manual_seed(0))
    return images.masked_fill(mask[:, None], 0.0), mask


def runner_of(detector: LiteDETR, side: str, example: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of (images, padding mask) that returns the encoder's memory [1, S, C].

    Args:
        detector: in float32.
        side: of `_SIDES`.
        example: images [1, 3, H, W], from which int8 takes its ranges.
    """
    if side != "plain":
        if side == INT8:
            ranges = find_ranges(detector.body, [example])
            network = prepare_in_int8(detector, ranges)
        else:
            network = prepare_for_inference(detector, DTYPES[side])
        return lambda images, mask: network(images, mask).memory

    def run(images: Tensor, mask: Tensor) -> Tensor:
        with plain_pytorch():
            return detector(images, mask).memory  # type: ignore[no-any-return]

    return run


def start_side(model: str, side: str, threads: int) -> Side:
    """Starts one side in its own process, which loads the network and runs two images."""
    command = [sys.executable, "-m", "benchmarks.model.cpu", "--worker", model, side]
    return Side(side, [*command, "--threads", str(threads)])


def work(model: str, side: str) -> None:
    """The worker process: runs an image for each line on stdin, prints its two times as JSON."""
    detector, size = network_of(model)
    images, mask = batch_of(size)
    if side != "plain":
        keep_freed_memory()  # as the engine does
    run = runner_of(detector, side, images)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    memory = run(images, mask)
    peak = peak_mib()
    error = 0.0
    if model == "default":  # R50 in float64 would take minutes; see precision.py
        exact = copy.deepcopy(detector).double()(images.double(), mask).memory
        if exact.shape != memory.shape:  # the inference network drops the padding tokens
            height, width = mask.shape[1:]
            exact = exact[:, image_tokens(mask, level_shapes(height, width, _LEVELS))]
        error = float((memory.double() - exact).abs().max())
    run(images, mask)
    take_turns((peak - resident / 2**20, error), lambda: run(images, mask))


def measure(model: str, repeats: int, threads: int) -> list[Row]:
    """Times all sides in alternation."""
    sides = [start_side(model, name, threads) for name in _SIDES]
    for _ in range(repeats):
        for side in sides:
            side.run()
    rows = []
    for side in sides:
        side.close()
        base_walls, base_cpus = zip(*sides[0].times, strict=True)
        walls, cpus = zip(*side.times, strict=True)
        peak, error = side.ready
        row = Row(
            model=model,
            side=side.name,
            wall_ms=round(statistics.median(walls) * 1000, 1),
            cpu_ms=round(statistics.median(cpus) * 1000, 1),
            wall_ratio=_median_ratio(base_walls, walls),
            cpu_ratio=_median_ratio(base_cpus, cpus),
            peak_mib=peak,
            largest_memory_difference=error,
        )
        rows.append(row)
        print(json.dumps(asdict(row)), flush=True)
    return rows


def _median_ratio(base: Sequence[float], own: Sequence[float]) -> float:
    return round(float(statistics.median(map(operator.truediv, base, own))), 2)


def to_markdown(rows: list[Row]) -> str:
    """The report's table."""
    columns = ("model", "side", "wall, ms", "CPU, ms", "ratio, wall", "ratio, CPU", "peak, MiB")
    cells = [
        (
            row.model,
            row.side,
            f"{row.wall_ms}",
            f"{row.cpu_ms}",
            f"{row.wall_ratio}",
            f"{row.cpu_ratio}",
            f"{row.peak_mib:.0f}",
            f"{row.largest_memory_difference or math.nan:.2g}",
        )
        for row in rows
    ]
    return table((*columns, "encoder output, largest difference to float64"), cells, texts=2)


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description="Time whole networks on the CPU.")
    parser.add_argument("--models", nargs="+", default=["default", "r50"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--output", type=Path, default=RESULTS / "model")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.worker:
        with torch.inference_mode():
            work(*options.worker)
        return
    document = conditions()
    rows: list[Row] = []
    for model in options.models:
        rows += measure(model, options.repeats, options.threads)
    document |= {"threads": options.threads, "repeats": options.repeats}
    document |= {"torch": torch.__version__, "rows": [asdict(row) for row in rows]}
    sections = [
        f"torch {torch.__version__}, {options.threads} threads, {options.repeats} rounds. Ratios: "
        "time of plain PyTorch / time of this side, median of alternating rounds.\n",
        to_markdown(rows),
    ]
    write_report(options.output / "cpu", "Whole networks on a CPU, one image", document, sections)


if __name__ == "__main__":
    main()
