"""The attention kernels: results and times at the sizes of a photo, with the baselines.

    python -m benchmarks.gpu.attention [--device cuda] [--small] [--only-kernels] [--results FILE]

For 22,223 queries (all tokens of a photo of 800 x 1333), 5,523 (the coarser levels) and 900 (the
decoder), key-aware and plain: the largest error, compared with float64 on the CPU for some queries,
and the time of a call in a CUDA graph of 20. The baselines are the published formula in float32
(two `grid_sample` per level), and for plain attention the original algorithm (`original_msda.py`).
`--only-kernels` launches each kernel once, for a profiler. At the end the rates that the GPU
reaches at most are measured (`ceilings.py`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.ceilings import measure_ceilings
from benchmarks.gpu.original_msda import OriginalMsda
from benchmarks.gpu.results import Results
from model import ops
from model.ops.workloads import (
    DECODER_QUERIES,
    PHOTO,
    Inputs,
    Workload,
    cast,
    compiled_kernels,
    official_formula,
    random_inputs,
)

# In the order of measurement: float16 serves.
TOLERANCES = {torch.float16: 4e-3, torch.float32: 1e-4, torch.bfloat16: 2e-2}
_SIZES = ((22_223, "all tokens"), (5_523, "coarse tokens"), (DECODER_QUERIES, "decoder"))
_SMALL = ((16, 20), (8, 10), (4, 5), (2, 3))
_CHECKED = 512  # queries whose results are compared with float64
_LAUNCHES = 20  # in a graph
_REPLAYS = 15

Run = Callable[[], Tensor]


def main() -> int:
    """Measures; returns 1 if a result is wrong or the kernels are not in use."""
    parser = argparse.ArgumentParser(description="Check and time the attention kernels.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small maps, to try the script")
    parser.add_argument("--only-kernels", action="store_true")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    results = Results(options.results, device)
    with torch.inference_mode():
        for dtype in TOLERANCES:
            if device.type == "cpu" and dtype == torch.float16:
                continue  # the CPU has no kernels for it
            for workload in workloads(small=options.small):
                with results.guarded(str(label_of(workload, dtype))):
                    if options.only_kernels:
                        compiled_kernels(workload, cast(random_inputs(workload), dtype, device))
                    else:
                        measure(workload, dtype, device, results)
        if not options.only_kernels:
            with results.guarded("ceilings"):
                measure_ceilings(device, results, small=options.small)
    name = ops.implementation_name(device)
    results.row(kernels=name, failures=ops.kernel_failures(device))
    if name not in ("cpu", "cuda"):
        results.fail(f"not all kernels are in use: {name}")
    return results.exit_status


def workloads(*, small: bool = False) -> list[Workload]:
    """What is measured, on small maps to try the script."""
    shapes = _SMALL if small else PHOTO
    tokens = sum(height * width for height, width in shapes)
    return [
        Workload(
            place,
            key_aware,
            shapes,
            1,
            8,
            queries if queries == DECODER_QUERIES else min(queries, tokens),
        )
        for queries, place in _SIZES
        for key_aware in (True, False)
    ]


def label_of(workload: Workload, dtype: torch.dtype) -> dict[str, Any]:
    """What distinguishes the row of a workload in a type."""
    return {
        "attention": "key-aware" if workload.key_aware else "plain",
        "queries": workload.queries,
        "place": workload.name,
        "dtype": str(dtype).removeprefix("torch."),
    }


def measure(workload: Workload, dtype: torch.dtype, device: torch.device, results: Results) -> None:
    """One workload in one type; the kernel's own figures are written before the baselines run."""
    exact = random_inputs(workload)
    inputs, label = cast(exact, dtype, device), label_of(workload, dtype)
    error = largest_error(workload, inputs, compiled_kernels(workload, inputs))
    times = {"kernel_us": microseconds(lambda: compiled_kernels(workload, inputs), device)}
    results.row(**label, error=error, **_rounded(times))
    if not error <= TOLERANCES[dtype]:
        results.fail(f"{label}: off by {error}")
    if dtype == torch.float32 or (device.type == "cuda" and dtype == torch.float16):
        wide = cast(exact, torch.float32, device)
        times["formula_float32_us"] = microseconds(
            lambda: official_formula(workload, wide), device, 3
        )
    if device.type == "cuda" and not workload.key_aware and dtype != torch.bfloat16:
        times |= _time_original(workload, inputs, results)
    if len(times) > 1:
        results.row(**label, **_rounded(times))


def _rounded(times: dict[str, float]) -> dict[str, float]:
    return {name: round(us, 2) for name, us in times.items()}


def _time_original(workload: Workload, inputs: Inputs, results: Results) -> dict[str, float]:
    """Times of the original algorithm, its kernel alone and with what torch computes for it."""
    original = OriginalMsda(workload, inputs)
    error = largest_error(workload, inputs, original.run())
    if not error <= TOLERANCES[inputs.value.dtype]:
        results.fail(f"the baseline is wrong: off by {error}")
    device = inputs.value.device
    return {
        "original_kernel_us": microseconds(original.launch, device),
        "original_us": microseconds(original.run, device),
    }


def largest_error(workload: Workload, inputs: Inputs, output: Tensor) -> float:
    """Largest error of some queries, relative to the largest exact value where that exceeds 1."""
    count = min(_CHECKED, workload.queries)
    chosen = torch.linspace(0, workload.queries - 1, count).long()
    part = {
        field.name: getattr(inputs, field.name).cpu().double()
        if field.name == "value"
        else getattr(inputs, field.name).cpu().double()[:, chosen]
        for field in fields(inputs)
    }
    exact = official_formula(replace(workload, queries=count), Inputs(**part))
    error = (output.cpu().double()[:, chosen] - exact).abs().max()
    return float(error) / max(1.0, float(exact.abs().max()))


def microseconds(run: Run, device: torch.device, launches: int = _LAUNCHES) -> float:
    """The time of one call: the median of replays of a CUDA graph of several."""
    run()
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return 1e6 * (time.perf_counter() - started)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            run()
    taken = []
    for _ in range(_REPLAYS + 3):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        milliseconds: float = begin.elapsed_time(end)
        taken.append(1000.0 * milliseconds / launches)
    return statistics.median(taken[3:])


if __name__ == "__main__":
    sys.exit(main())
