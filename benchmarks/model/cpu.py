"""Whole models on the CPU, one image: the inference network against plain PyTorch.

    OMP_WAIT_POLICY=passive python -m benchmarks.model.cpu [--repeats 3] [--output FOLDER]

The baseline is `benchmarks.model.plain_pytorch`. Each side has a process of its own, with the
allocator as it would have it (see `model.inference.memory`), and the sides take turns; a ratio is
the median of the rounds' ratios. "CPU" is the process's CPU time, which a busy machine disturbs
less than the clock. The peak is what the first image takes beyond the loaded network. Weights of
the full network are random: time does not depend on them. Writes cpu.json and cpu.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.model.plain_pytorch import plain_pytorch
from benchmarks.serving.batch_invariance import random_r50_detector
from model.geometry import level_shapes, padded_size, resized_size
from model.inference.geometry import real_tokens
from model.inference.memory import keep_freed_memory
from model.inference.network import InferenceDetector
from model.weights.checkpoint import load_detector
from model.weights.info import resolve_model
from service.cpus import usable_cpus

_ROOT = Path(__file__).resolve().parents[2]
_SIDES = ("plain", "fp32", "bf16")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_STRIDE = 64
_LEVELS = 4


@dataclass(frozen=True)
class Row:
    """One model on one side."""

    model: str
    side: str
    wall_ms: float
    cpu_ms: float
    wall_ratio: float  # the baseline's over this side's
    cpu_ratio: float
    peak_mib: float  # above the loaded network's
    largest_memory_difference: float  # of the encoder's output to float64; 0: not measured


def network_of(model: str) -> tuple[nn.Module, tuple[int, int]]:
    """A detector and the (h, w) of an image."""
    if model == "default":
        detector, info = load_detector(resolve_model("default"))
        sides = info.config.shortest_side, info.config.longest_side
        return detector, resized_size(3000, 4000, *sides)
    return random_r50_detector(), (800, 1066)


def batch_of(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """One image of noise in its bucket."""
    padded = padded_size(*size, _STRIDE)
    mask = torch.ones(1, *padded, dtype=torch.bool)
    mask[:, : size[0], : size[1]] = False
    images = torch.randn(1, 3, *padded, generator=torch.Generator().manual_seed(0))
    return images.masked_fill(mask[:, None], 0.0), mask


def runner_of(detector: nn.Module, side: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Runs an image and gives the encoder's memory."""
    if side != "plain":
        network = InferenceDetector(detector, _DTYPES[side]).eval()  # type: ignore[arg-type]
        return lambda images, mask: network(images, mask).memory  # type: ignore[no-any-return]

    def run(images: Tensor, mask: Tensor) -> Tensor:
        with plain_pytorch():
            return detector(images, mask).memory  # type: ignore[no-any-return]

    return run


class Worker:
    """One side in a process of its own, so that sides share neither memory nor its settings."""

    def __init__(self, model: str, side: str, threads: int) -> None:
        """Starts it; it loads and runs one image."""
        command = [sys.executable, "-m", "benchmarks.model.cpu", "--worker", model, side]
        self._process = subprocess.Popen(
            [*command, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
        )
        self.peak_mib, self.error = self._read()

    def run(self) -> tuple[float, float]:
        """Runs an image: seconds by the clock and of CPU time."""
        assert self._process.stdin is not None
        print("run", file=self._process.stdin, flush=True)
        wall, cpu = self._read()
        return wall, cpu

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> tuple[float, float]:
        assert self._process.stdout is not None
        first, second = json.loads(self._process.stdout.readline())
        return first, second


def work(model: str, side: str) -> None:
    """The worker's side of `Worker`."""
    detector, size = network_of(model)
    images, mask = batch_of(size)
    if side != "plain":
        keep_freed_memory()  # as the engine does
    run = runner_of(detector, side)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew
    memory = run(images, mask)
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    error = 0.0
    if model == "default":  # the full network in float64 would take minutes; see precision.py
        exact = copy.deepcopy(detector).double()(images.double(), mask).memory
        if exact.shape != memory.shape:  # one image in service has no tokens of padding
            height, width = mask.shape[1:]
            exact = exact[:, real_tokens(mask, level_shapes(height, width, _LEVELS))]
        error = float((memory.double() - exact).abs().max())
    run(images, mask)
    print(json.dumps(((peak - resident) / 2**20, error)), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        run(images, mask)
        print(json.dumps((time.perf_counter() - wall, time.process_time() - cpu)), flush=True)


def measure(model: str, repeats: int, threads: int) -> list[Row]:
    """Times all sides in turns."""
    workers = {side: Worker(model, side, threads) for side in _SIDES}
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in _SIDES}
    for _ in range(repeats):
        for side, worker in workers.items():
            times[side].append(worker.run())
    rows = []
    for side, worker in workers.items():
        worker.close()
        ratios = [
            [
                base[clock] / own[clock]
                for base, own in zip(times["plain"], times[side], strict=True)
            ]
            for clock in (0, 1)
        ]
        wall, cpu = (statistics.median(own[clock] for own in times[side]) for clock in (0, 1))
        medians = [round(statistics.median(of), 2) for of in ratios]
        milliseconds = (round(wall * 1000, 1), round(cpu * 1000, 1))
        row = Row(model, side, *milliseconds, *medians, worker.peak_mib, worker.error)
        rows.append(row)
        print(json.dumps(asdict(row)), flush=True)
    return rows


def to_markdown(facts: dict[str, object], rows: list[Row]) -> str:
    """The table for people."""
    lines = [
        "# Whole models on a CPU, one image",
        "",
        "Made by `python -m benchmarks.model.cpu`: "
        + ", ".join(f"{key} {value}" for key, value in facts.items())
        + ". Ratios: plain PyTorch's time over this side's, median of rounds in turns.",
        "",
        "| model | side | wall, ms | CPU, ms | ratio, wall | ratio, CPU | peak, MiB "
        "| memory's largest difference to float64 |",
        "| --- | --- |" + " ---: |" * 6,
    ]
    lines += [
        f"| {row.model} | {row.side} | {row.wall_ms} | {row.cpu_ms} | {row.wall_ratio} "
        f"| {row.cpu_ratio} | {row.peak_mib:.0f} "
        f"| {row.largest_memory_difference or math.nan:.2g} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description="Time whole models on the CPU.")
    parser.add_argument("--models", nargs="+", default=["default", "r50"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--output", type=Path, default=_ROOT / "benchmarks/results/model")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.worker:
        with torch.inference_mode():
            work(*options.worker)
        return
    rows: list[Row] = []
    for model in options.models:
        rows += measure(model, options.repeats, options.threads)
    facts: dict[str, object] = {
        "threads": options.threads,
        "repeats": options.repeats,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    record = {**facts, "rows": [asdict(row) for row in rows]}
    (options.output / "cpu.json").write_text(json.dumps(record, indent=2) + "\n")
    (options.output / "cpu.md").write_text(to_markdown(facts, rows))


if __name__ == "__main__":
    main()
