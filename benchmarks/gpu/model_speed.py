"""Whole networks on a device: speed by batch size, against eager PyTorch, and shares of the time.

    python -m benchmarks.gpu.model_speed [--device cuda] [--json FILE]

For each model, with random weights: the largest difference of the encoder's output to float64 on
the CPU; the time of one image in float32 with plain PyTorch attention (`reference`), which is the
baseline; of one image in float32 with the kernels; and of batches in a 16-bit type. The shares are
those of GPU time by kernel name: matrix products and convolutions, attention kernels, the rest.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.report import write
from model import VARIANTS, build_detector, ops

_SIZES = {"lite-dino-r50-h3l1-2p1x3": (800, 1333), "lite-dino-efficientnet-lite0": (384, 512)}
_PRODUCTS = ("gemm", "conv", "cutlass", "xmma", "wgrad", "dgrad", "implicit", "winograd", "nvjet")
_ATTENTION = "lite_detr"
_PROFILED_BATCH = 8
_WARM_UP_CALLS = 2


def main() -> int:
    """Times and profiles; returns 1 if a batch did not fit into memory."""
    parser = argparse.ArgumentParser(description="Time whole networks against eager PyTorch.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", choices=_SIZES, default=list(_SIZES))
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    failures: list[str] = []
    with torch.inference_mode():
        results = [measure(name, device, options, failures) for name in options.models]
    write(options.json, device, {"models": results, "failures": failures})
    return 1 if failures else 0


def measure(
    name: str, device: torch.device, options: argparse.Namespace, failures: list[str]
) -> dict[str, Any]:
    """Measures one model; adds what did not fit into memory to `failures`."""
    size = tuple(options.size or _SIZES[name])
    torch.manual_seed(0)
    detector = build_detector(VARIANTS[name]).eval().to(device)
    error = _memory_error(detector, device)
    ops.select_implementation("reference")
    eager = _median_ms(_runner(detector, 1, size, torch.float32), device, options.repeats)
    ops.select_implementation("auto")
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    rows: list[dict[str, Any]] = []
    for dtype, batch in ((torch.float32, 1), *((half, batch) for batch in options.batches)):
        try:
            taken = _median_ms(_runner(detector, batch, size, dtype), device, options.repeats)
        except torch.OutOfMemoryError as oom:
            failures.append(f"{name}, batch {batch}: {oom}")
            break
        row = {
            "dtype": str(dtype).removeprefix("torch."),
            "batch": batch,
            "median_ms": round(taken, 3),
            "images_per_second": round(1000 * batch / taken, 1),
            "ratio_to_eager": round(eager * batch / taken, 2),
        }
        rows.append(row)
        print(name, row, flush=True)
    result = {"model": name, "size": size, "float32_memory_error": error}
    result |= {"eager_float32_ms": round(eager, 3), "rows": rows}
    if device.type == "cuda":
        result["shares"] = _shares(_runner(detector, _PROFILED_BATCH, size, half))
    return result


def _memory_error(detector: nn.Module, device: torch.device) -> float:
    """Largest difference of the encoder's output to float64 on the CPU, on a small image."""
    images = torch.randn(1, 3, 192, 256)
    mask = torch.zeros(1, 192, 256, dtype=torch.bool)
    ours = detector(images.to(device), mask.to(device)).memory.double().cpu()
    exact = detector.double().cpu()(images.double(), mask).memory
    detector.float().to(device)
    return float((ours - exact).abs().max())


def _runner(
    detector: nn.Module, batch: int, size: tuple[int, ...], dtype: torch.dtype
) -> Callable[[], None]:
    device = next(detector.parameters()).device
    images: Tensor = torch.randn(batch, 3, *size, device=device)
    mask = torch.zeros(batch, *size, dtype=torch.bool, device=device)

    def run() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            detector(images, mask)

    return run


def _median_ms(run: Callable[[], None], device: torch.device, repeats: int) -> float:
    times = []
    for _ in range(repeats + _WARM_UP_CALLS):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[_WARM_UP_CALLS:])


def _shares(run: Callable[[], None]) -> dict[str, float]:
    """Shares of the GPU's time, by kernel name."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    sums = {"products": 0.0, "attention": 0.0, "rest": 0.0}
    for event in profile.key_averages():
        name = event.key.lower()
        kind = "attention" if _ATTENTION in name else "rest"
        if any(word in name for word in _PRODUCTS):
            kind = "products"
        sums[kind] += event.self_device_time_total
    whole = sum(sums.values()) or 1.0
    return {kind: round(taken / whole, 3) for kind, taken in sums.items()}


if __name__ == "__main__":
    sys.exit(main())
