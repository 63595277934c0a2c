"""Times whole models on a device, and checks them against float64 on the CPU.

python -m benchmarks.gpu.model_timings --json FILE
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from model import VARIANTS, build_detector

_SIZES = {"lite-dino-r50-h3l1-2p1x3": (800, 1333), "lite-dino-efficientnet-lite0": (384, 512)}


def main() -> None:
    """Times each model at several batch sizes in float32 and float16."""
    parser = argparse.ArgumentParser(description="Time whole models.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    rows = []
    for name, size in _SIZES.items():
        torch.manual_seed(0)
        detector = build_detector(VARIANTS[name]).eval().to(device)
        error = _memory_error(detector, device)
        for dtype in (torch.float32, torch.float16):
            for batch in options.batches:
                milliseconds = _median_ms(detector, batch, size, dtype, options.repeats)
                row = {
                    "model": name,
                    "height": size[0],
                    "width": size[1],
                    "dtype": str(dtype).removeprefix("torch."),
                    "batch": batch,
                    "median_ms": round(milliseconds, 3),
                    "images_per_second": round(1000 * batch / milliseconds, 1),
                    "float32_memory_error": error,
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def _memory_error(detector: torch.nn.Module, device: torch.device) -> float:
    """Largest difference of the encoder's memory to float64 on the CPU, on a small image."""
    images = torch.randn(1, 3, 192, 256)
    mask = torch.zeros(1, 192, 256, dtype=torch.bool)
    with torch.inference_mode():
        ours = detector(images.to(device), mask.to(device)).memory.double().cpu()
        exact = detector.double().cpu()(images.double(), mask).memory
    detector.float().to(device)
    return float((ours - exact).abs().max())


def _median_ms(
    detector: torch.nn.Module, batch: int, size: tuple[int, int], dtype: torch.dtype, repeats: int
) -> float:
    device = next(detector.parameters()).device
    images = torch.randn(batch, 3, *size, device=device)
    mask = torch.zeros(batch, *size, dtype=torch.bool, device=device)
    times = []
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for _ in range(repeats + 3):
            started = time.perf_counter()
            detector(images, mask)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times[3:])


if __name__ == "__main__":
    main()
