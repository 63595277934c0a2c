"""What this GPU reaches at most: copies within its memory, and matrix products in float16.

The floors of the report are computed from an H200's rates (`roofline.H200`); these figures say how
far this GPU, in this run, is from them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.gpu.results import Results

_COPIED_BYTES = 4 << 30
_SIDE = 8192  # of the matrices
_REPEATS = 8


def measure_ceilings(device: torch.device, results: Results, *, small: bool = False) -> None:
    """Writes one row: bytes read and written per second, and operations per second."""
    copied, side = (1 << 20, 64) if small else (_COPIED_BYTES, _SIDE)
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _seconds(lambda: target.copy_(source), device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    left, right = torch.randn(2, side, side, device=device).to(dtype).unbind(0)
    product_seconds = _seconds(lambda: torch.mm(left, right), device)
    results.row(
        ceilings=str(device),
        terabytes_per_second=float(f"{2e-12 * copied / seconds:.4g}"),
        teraflops=float(f"{2e-12 * side**3 / product_seconds:.4g}"),
    )


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median time of a call, by the host's clock; a call takes milliseconds."""
    taken = []
    for _ in range(_REPEATS + 2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:])
