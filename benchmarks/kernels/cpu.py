"""The compiled CPU kernels against the official formula, in one run.

    python -m benchmarks.kernels.cpu [--repeats 5] [--threads 2] [--output FOLDER]

The baseline is deformable attention as the published models compute it in PyTorch, see
`model/ops/workloads.py`. Both sides get the same inputs and alternate, so load on the machine
slows both; compare the ratios rather than the milliseconds. Writes cpu.json and cpu.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import RESULTS, conditions, table, write_report
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
    """Medians of one workload."""

    name: str
    queries: int
    official_ms: float
    compiled_ms: float
    ratio: float
    official_cpu_ms: float  # CPU time of all threads, which load on the machine changes little
    compiled_cpu_ms: float
    cpu_ratio: float
    largest_difference: float


_WORKLOADS = (
    Workload("key-aware, all tokens", True, PHOTO, 1, 8, 22_223),
    Workload("key-aware, high-level tokens", True, PHOTO, 1, 8, 5_523),
    Workload("key-aware, decoder", True, PHOTO, 1, 8, DECODER_QUERIES),
    Workload("plain, all tokens", False, PHOTO, 1, 8, 22_223),
    Workload("plain, high-level tokens", False, PHOTO, 1, 8, 5_523),
    Workload("plain, decoder", False, PHOTO, 1, 8, DECODER_QUERIES),
    Workload("key-aware, training step", True, TRAINING, 8, 4, 2_125, training=True),
    Workload("plain, training step", False, TRAINING, 8, 4, 2_125, training=True),
)


def measure(workload: Workload, repeats: int) -> Row:
    """Medians of both sides, which alternate after one call each that is not counted.

    Raises:
        RuntimeError: if the two sides give different numbers.
    """
    inputs = random_inputs(workload)
    sides: Sequence[Callable[[Workload, Inputs], Tensor]] = (official_formula, compiled_kernels)
    exact, fast = (side(workload, inputs).detach() for side in sides)
    difference = float((exact - fast).abs().max())
    if not difference <= _TOLERANCE:
        raise RuntimeError(f"{workload.name}: the two sides differ by {difference}")
    walls: tuple[list[float], list[float]] = ([], [])
    cpus: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, wall, cpu in zip(sides, walls, cpus, strict=True):
            start, cpu_start = time.perf_counter(), time.process_time()
            output = side(workload, inputs)
            if workload.training:
                output.sum().backward()  # type: ignore[no-untyped-call]
            cpu.append(1e3 * (time.process_time() - cpu_start))
            wall.append(1e3 * (time.perf_counter() - start))
    times = (*_compared(walls), *_compared(cpus))
    return Row(workload.name, workload.queries, *times, largest_difference=difference)


def _compared(times: tuple[list[float], list[float]]) -> tuple[float, float, float]:
    """Medians of official and compiled, and the ratio official / compiled."""
    official, compiled = map(statistics.median, times)
    return round(official, 2), round(compiled, 2), round(official / compiled, 2)


def main() -> None:
    """Measures every workload and writes the report."""
    parser = argparse.ArgumentParser(description="Time the CPU kernels.")
    parser.add_argument("--repeats", type=int, default=5, help="measured calls per side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=RESULTS / "kernels")
    options = parser.parse_args()
    document = conditions()
    torch.set_num_threads(options.threads)
    ops.select_implementation("cpu")
    rows = []
    for workload in _WORKLOADS:
        rows.append(measure(workload, options.repeats))
        print(rows[-1], file=sys.stderr, flush=True)
    document |= {"torch": torch.__version__, "threads": options.threads}
    document |= {"repeats": options.repeats, "rows": [asdict(row) for row in rows]}
    columns = ("", "queries", "official, ms", "compiled, ms", "ratio", "ratio, CPU time")
    cells = [
        (
            row.name,
            f"{row.queries}",
            f"{row.official_ms:.1f}",
            f"{row.compiled_ms:.2f}",
            f"{row.ratio:.1f}",
            f"{row.cpu_ratio:.1f}",
        )
        for row in rows
    ]
    facts = f"torch {torch.__version__}, {options.threads} threads, {options.repeats} rounds.\n"
    sections = [facts, table(columns, cells)]
    write_report(options.output / "cpu", "Attention kernels on a CPU", document, sections)


if __name__ == "__main__":
    main()
