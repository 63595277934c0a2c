"""Whole models on the CPU, one image: the inference network against plain PyTorch.

    OMP_WAIT_POLICY=passive python -m benchmarks.model.cpu [--repeats 3] [--output FOLDER]

The baseline is `benchmarks.model.plain`. All sides take turns in one process; a ratio is the median
of the rounds' ratios. "cpu" is the process's CPU time, which a busy machine disturbs less
than the clock. Peak memory comes from a process of its own for each side, less what that process
held before. Weights of the full network are random: time does not depend on them. Writes
cpu.json and cpu.md.
"""

from __future__ import annotations

import argparse
import json
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

from benchmarks.model.plain import plain_pytorch
from benchmarks.serving.batch_invariance import random_r50_detector
from model.checkpoint import load_detector
from model.geometry import padded_size, resized_size
from model.inference.memory import keep_freed_memory
from model.inference.network import InferenceDetector
from model.weights_file import resolve_model
from service.cpus import usable_cpus

_ROOT = Path(__file__).resolve().parents[2]
_SIDES = ("plain", "fp32", "bf16")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_STRIDE = 64


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
    largest_memory_difference: float  # of the encoder's output to float64


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


def measure(model: str, repeats: int) -> list[Row]:
    """Times all sides in turns and compares them with float64."""
    detector, size = network_of(model)
    images, mask = batch_of(size)
    runs = {side: runner_of(detector, side) for side in _SIDES}
    memories = {side: run(images, mask) for side, run in runs.items()}
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in _SIDES}
    for _ in range(repeats):
        for side, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run(images, mask)
            times[side].append((time.perf_counter() - wall, time.process_time() - cpu))
    exact = detector.double()(images.double(), mask).memory
    rows = []
    for side in _SIDES:
        ratios = [
            [
                base[clock] / own[clock]
                for base, own in zip(times["plain"], times[side], strict=True)
            ]
            for clock in (0, 1)
        ]
        wall, cpu = (statistics.median(own[clock] for own in times[side]) for clock in (0, 1))
        error = float((memories[side].double() - exact).abs().max())
        medians = [round(statistics.median(of), 2) for of in ratios]
        row = Row(
            model,
            side,
            round(wall * 1000, 1),
            round(cpu * 1000, 1),
            *medians,
            peak_mib=peak_of(model, side),
            largest_memory_difference=error,
        )
        rows.append(row)
        print(json.dumps(asdict(row)), flush=True)
    return rows


def peak_of(model: str, side: str) -> float:
    """MiB that a forward takes at most beyond what was held before, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.model.cpu", "--peak", model, side]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=_ROOT)
    return float(done.stdout)


def print_peak(model: str, side: str) -> None:
    """The same in this process."""
    detector, size = network_of(model)
    with torch.inference_mode():
        run = runner_of(detector, side)
        del detector
        images, mask = batch_of(size)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        before = pages * resource.getpagesize()
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew
        run(images, mask)
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print((peak - before) / 2**20)


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
        f"| {row.cpu_ratio} | {row.peak_mib:.0f} | {row.largest_memory_difference:.2g} |"
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
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        print_peak(*options.peak)
        return
    keep_freed_memory()  # as the engine does; it helps every side
    rows: list[Row] = []
    with torch.inference_mode():
        for model in options.models:
            rows += measure(model, options.repeats)
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
