"""CPU time of each part of the inference network, compared with a lower bound.

    OMP_WAIT_POLICY=passive python -m benchmarks.model.profile [--repeats 5] [--output FOLDER]

CPU time (all threads) of each part, as it serves. The lower bound ("floor") is the time of its
matrix products and convolutions at the rate of the fastest of a few large products measured in the
same run. The rest is what is above it: slower products, attention kernels, norms, sums, copies, and
the fixed price of starting each of them, which a tiny image shows. Writes profile.json and .md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.model.cpu import DTYPES, batch_of, network_of
from benchmarks.report import RESULTS, conditions, table, write_report
from model.network.complexity import count
from model.network.detector import LiteDETR
from model.network.inference import prepare_for_inference
from model.network.linear import Linear
from service.cpus import usable_cpus
from service.engine.host_memory import keep_freed_memory

_GEMMS = ((4433, 256, 2048), (4433, 2048, 256), (2048, 2048, 2048))  # rows, inputs, outputs
_TINY = (64, 64)
_ALL = "all"


@dataclass
class Part:
    """One part of a network; times are milliseconds of CPU time per image."""

    model: str
    precision: str
    size: tuple[int, int]
    part: str
    total_ms: float
    gflop: float  # multiplications and additions
    floor_ms: float


def _methods(network: LiteDETR) -> dict[str, list[tuple[nn.Module, str]]]:
    """What computes each part, by the parts' names in `model.network.complexity`."""
    transformer = network.transformer
    return {
        "backbone": [(network.backbone[0], "forward")],
        "projections": [(network.input_proj, "tokens")],
        "encoder": [(transformer.encoder, "forward")],
        "selection": [(transformer, "propose")],
        "decoder": [(transformer.decoder, "predict")],
        _ALL: [(network, "forward")],
    }


def _timed(method: Callable[..., Any], add: Callable[[float], None]) -> Callable[..., Any]:
    """The method, which also adds the CPU seconds of each call."""

    def call(*positional: Any, **named: Any) -> Any:
        started = time.process_time()
        result = method(*positional, **named)
        add(time.process_time() - started)
        return result

    return call


def best_rate(dtype: torch.dtype) -> float:
    """The largest rate of a few large products on this machine, GFLOP per CPU second."""
    best = 0.0
    for rows, inputs, outputs in _GEMMS:
        product = Linear(inputs, outputs).inference_form(dtype)
        x = torch.randn(1, rows, inputs).to(dtype)
        for _ in range(6):
            started = time.process_time()
            product(x)
            seconds = time.process_time() - started
            best = max(best, 2e-9 * rows * inputs * outputs / seconds)
    return best


def measure(model: str, precision: str, size: tuple[int, int] | None, repeats: int) -> list[Part]:
    """Medians over `repeats` images, after one that is not counted.

    Args:
        model: "default" or "r50".
        precision: a key of `DTYPES`.
        size: (height, width) of the image; None: the model's usual one.
        repeats: images.
    """
    detector, usual = network_of(model)
    size = size or usual
    network = prepare_for_inference(detector, DTYPES[precision])
    images, mask = batch_of(size)
    network(images, mask)
    seconds: dict[str, list[float]] = {}
    for part, methods in _methods(network).items():
        times = seconds[part] = []
        for module, name in methods:
            setattr(module, name, _timed(getattr(module, name), times.append))
    found: dict[str, list[float]] = {part: [] for part in seconds}
    for _ in range(repeats):
        network(images, mask)
        for part, times in seconds.items():
            found[part].append(1000 * sum(times))
            times.clear()
    rate = best_rate(DTYPES[precision])
    costs = {name: 2 * billions for name, billions in count(detector.config, [size]).parts.items()}
    costs[_ALL] = sum(costs.values())
    return [
        Part(model, precision, size, part, median(ms), costs[part], 1000 * costs[part] / rate)
        for part, ms in found.items()
    ]


def to_markdown(rows: list[Part]) -> str:
    """The report's table."""
    columns = ("model", "precision", "image", "part", "ms", "floor", "the rest", "GFLOP")
    cells = []
    for row in rows:
        figures = (row.total_ms, row.floor_ms, row.total_ms - row.floor_ms, row.gflop)
        shown = [f"{figure:.1f}" for figure in figures]
        size = "x".join(map(str, row.size))
        cells.append((row.model, row.precision, size, row.part, *shown))
    return table(columns, cells, texts=4)


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description="Profile the inference network.")
    parser.add_argument("--models", nargs="+", default=["default", "r50"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "model")
    options = parser.parse_args()
    document = conditions()
    torch.set_num_threads(usable_cpus())
    keep_freed_memory()
    rows: list[Part] = []
    with torch.inference_mode():
        for model in options.models:
            for precision in DTYPES:
                rows += measure(model, precision, None, options.repeats)
        if "default" in options.models:
            rows += measure("default", "fp32", _TINY, options.repeats)
    document["rows"] = [asdict(row) for row in rows]
    sections = [
        f"Milliseconds of CPU time per image, {torch.get_num_threads()} threads. The class and "
        "box heads of the last layer are timed with the decoder and counted with the selection.\n",
        to_markdown(rows),
    ]
    title = "CPU time of the network's parts"
    write_report(options.output / "profile", title, document, sections)


if __name__ == "__main__":
    main()
