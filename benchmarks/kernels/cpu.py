"""How much faster the compiled CPU kernels are than the official formula, in one run.

    python -m benchmarks.kernels.cpu [--repeats 5] [--threads 2] [--json FILE]

The baseline is deformable attention the way the published models compute it in PyTorch, see
`model/ops/workloads.py`. Both sides get the same inputs and take turns, so a busy machine slows
both alike; compare
the ratios rather than the milliseconds. Prints a table, then the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from model import ops
from model.ops.workloads import (
    DECODER_QUERIES,
    PHOTO,
    TRAINING,
    Inputs,
    Workload,
    compiled_kernels,
    official_formula,
    random_inputs,
)

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Row:
    """Medians of one setting."""

    name: str
    queries: int
    official_ms: float
    compiled_ms: float
    ratio: float
    official_cpu_ms: float  # processor time of all threads, which other programs hardly lengthen
    compiled_cpu_ms: float
    cpu_ratio: float
    largest_difference: float


_SETTINGS = (
    Workload("key-aware, all tokens", True, PHOTO, 1, 8, 22_223),
    Workload("key-aware, high-level tokens", True, PHOTO, 1, 8, 5_523),
    Workload("key-aware, decoder", True, PHOTO, 1, 8, DECODER_QUERIES),
    Workload("plain, all tokens", False, PHOTO, 1, 8, 22_223),
    Workload("plain, high-level tokens", False, PHOTO, 1, 8, 5_523),
    Workload("plain, decoder", False, PHOTO, 1, 8, DECODER_QUERIES),
    Workload("key-aware, training step", True, TRAINING, 8, 4, 2_125, training=True),
    Workload("plain, training step", False, TRAINING, 8, 4, 2_125, training=True),
)


def measure(setting: Workload, repeats: int) -> Row:
    """Medians of both sides, which take turns after one unmeasured call each.

    Raises:
        RuntimeError: where the two sides disagree; timings would mean nothing.
    """
    inputs = random_inputs(setting)
    sides: Sequence[Callable[[Workload, Inputs], Tensor]] = (official_formula, compiled_kernels)
    exact, fast = (side(setting, inputs).detach() for side in sides)
    difference = float((exact - fast).abs().max())
    if not difference <= _TOLERANCE:
        raise RuntimeError(f"{setting.name}: the two sides differ by {difference}")
    walls: tuple[list[float], list[float]] = ([], [])
    works: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, wall, work in zip(sides, walls, works, strict=True):
            start, start_of_work = time.perf_counter(), time.process_time()
            output = side(setting, inputs)
            if setting.training:
                output.sum().backward()  # type: ignore[no-untyped-call]
            work.append(1e3 * (time.process_time() - start_of_work))
            wall.append(1e3 * (time.perf_counter() - start))
    times = (*_compared(walls), *_compared(works))
    return Row(setting.name, setting.queries, *times, largest_difference=difference)


def _compared(times: tuple[list[float], list[float]]) -> tuple[float, float, float]:
    """Medians of official and compiled, and how many times the one is the other."""
    official, compiled = map(statistics.median, times)
    return round(official, 2), round(compiled, 2), round(official / compiled, 2)


def main() -> None:
    """Measures every setting and prints a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5, help="measured calls a side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file for the results, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    ops.select_implementation("cpu")
    times = f"{'official ms':>12} {'compiled ms':>12} {'ratio':>7} {'by CPU time':>12}"
    print(f"{'':30} {'queries':>8} {times}")
    rows = []
    for setting in _SETTINGS:
        row = measure(setting, arguments.repeats)
        rows.append(asdict(row))
        times = f"{row.official_ms:12.1f} {row.compiled_ms:12.2f} {row.ratio:6.1f}x"
        times += f" {row.cpu_ratio:11.1f}x"
        print(f"{row.name:30} {row.queries:8} {times}", flush=True)
    facts = {
        "command": "python -m " + " ".join(["benchmarks.kernels.cpu", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "load_average": os.getloadavg()[0],
    }
    report = json.dumps({**facts, "rows": rows}, indent=2)
    print(report)
    if arguments.json is not None:
        arguments.json.write_text(report + "\n")


if __name__ == "__main__":
    main()
