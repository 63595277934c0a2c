"""A whole model on a device: beside eager PyTorch, by batch size, and where its time goes.

python -m benchmarks.gpu.model_speed [--device cuda] [--json FILE]

The baseline is the same network in float32 with plain PyTorch attention (`reference`), one image.
The shares are of the GPU's time by the names of its kernels: matrix products and convolutions, our
attention, the rest.
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

_VARIANT = "lite-dino-r50-h3l1-2p1x3"
_PRODUCTS = ("gemm", "conv", "cutlass", "xmma", "wgrad", "dgrad", "implicit", "winograd", "nvjet")
_OURS = "lite_detr"


def main() -> int:
    """Times and profiles; 1 where a part failed."""
    parser = argparse.ArgumentParser(description="Time a whole model beside eager PyTorch.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("H", "W"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device, size = torch.device(options.device), tuple(options.size)
    torch.manual_seed(0)
    detector = build_detector(VARIANTS[_VARIANT]).eval().to(device)
    fast = torch.float16 if device.type == "cuda" else torch.bfloat16
    results: dict[str, Any] = {"model": _VARIANT, "size": size, "fast_dtype": str(fast)}
    failures = []
    with torch.inference_mode():
        ops.select_implementation("reference")
        eager = _median_ms(_runner(detector, 1, size, torch.float32), device, options.repeats)
        ops.select_implementation("auto")
        results["eager_float32_ms"] = round(eager, 3)
        rows: list[dict[str, float]] = []
        for batch in options.batches:
            try:
                taken = _median_ms(_runner(detector, batch, size, fast), device, options.repeats)
            except torch.OutOfMemoryError as error:
                failures.append(f"batch {batch}: {error}")
                break
            row = {
                "batch": batch,
                "median_ms": round(taken, 3),
                "images_per_second": round(1000 * batch / taken, 1),
                "ratio_to_eager": round(eager * batch / taken, 2),
            }
            rows.append(row)
            print(row, flush=True)
        results["rows"] = rows
        if device.type == "cuda":
            results["shares"] = _shares(_runner(detector, 8, size, fast))
    write(options.json, device, {**results, "failures": failures})
    return 1 if failures else 0


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
    for _ in range(repeats + 2):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[2:])


def _shares(run: Callable[[], None]) -> dict[str, float]:
    """Of the GPU's time, by the names of its kernels."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    sums = {"products": 0.0, "attention": 0.0, "rest": 0.0}
    for event in profile.key_averages():
        name = event.key.lower()
        kind = "attention" if _OURS in name else "rest"
        if any(word in name for word in _PRODUCTS):
            kind = "products"
        sums[kind] += event.self_device_time_total
    whole = sum(sums.values()) or 1.0
    return {kind: round(taken / whole, 3) for kind, taken in sums.items()}


if __name__ == "__main__":
    sys.exit(main())
