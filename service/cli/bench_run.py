"""One run of `lite-detr bench`: times of kernels and model, compared with plain PyTorch.

Each row gets a share of the time. Both sides of a row get the same inputs and alternate, so that
other load slows both; each row has at least one round, however slow it is.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from model import ops
from model.geometry import padded_size, resized_size
from model.ops.workloads import (
    DECODER_QUERIES,
    PHOTO,
    Workload,
    cast,
    compiled_kernels,
    official_formula,
    random_inputs,
)
from model.predictor import Predictor
from service.engine.load import load_from_settings
from service.settings import Settings

_KERNELS_SHARE = 0.5  # of the time
_MAX_ROUNDS = 50
_IMAGE_SIZE = (480, 640)  # (H, W), before the model's own resize
_HIGH_LEVEL_QUERIES = 5_523  # levels above the first, of an image of 800 x 1333
_WORKLOADS = (
    Workload("key-aware, high levels", True, PHOTO, 1, 8, _HIGH_LEVEL_QUERIES),
    Workload("key-aware, decoder", True, PHOTO, 1, 8, DECODER_QUERIES),
    Workload("plain, high levels", False, PHOTO, 1, 8, _HIGH_LEVEL_QUERIES),
    Workload("plain, decoder", False, PHOTO, 1, 8, DECODER_QUERIES),
)


@dataclass(frozen=True)
class KernelFigures:
    """Attention in one image of 800 x 1333 pixels; medians."""

    name: str
    queries: int
    dtype: str  # of ours; PyTorch's side computes in float32
    pytorch_ms: float
    ours_ms: float
    ratio: float  # how many times faster ours is


@dataclass(frozen=True)
class ModelFigures:
    """Detection in images of 640 x 480, from resized pixels to boxes; medians."""

    batch: int
    padded_height: int  # of the network's input
    padded_width: int
    pytorch_ms: float  # per batch, with attention in plain PyTorch
    ours_ms: float  # per batch
    images_per_second: float
    ratio: float


@dataclass(frozen=True)
class Figures:
    """All figures of one machine and model."""

    model: str
    device: str
    kernels: str  # implementation of attention: cpu, cuda or reference (then no ratio is above 1)
    threads: int
    torch: str
    kernel_rows: tuple[KernelFigures, ...]
    model_rows: tuple[ModelFigures, ...]


def measure_machine(settings: Settings, seconds: float) -> Figures:
    """Measures kernels and model; reports progress on stderr.

    Args:
        settings: the model and how to run it.
        seconds: about how long to measure.

    Raises:
        CheckpointError: for a model that cannot be used.
        RuntimeError: for a device that does not exist.
    """
    predictor, info = load_from_settings(settings)
    device = predictor.device
    batches = (1, settings.max_batch_size) if predictor.runs_batches_whole else (1,)
    kernel_seconds = seconds * _KERNELS_SHARE / len(_WORKLOADS)
    model_seconds = seconds * (1 - _KERNELS_SHARE) / len(batches)
    try:
        with torch.inference_mode():
            kernel_rows = tuple(_kernel(work, device, kernel_seconds) for work in _WORKLOADS)
            model_rows = tuple(_model(predictor, batch, model_seconds) for batch in batches)
    finally:
        ops.select_implementation("auto")
    on_gpu = device.type == "cuda"
    return Figures(
        model=info.name,
        device=torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        kernels=ops.implementation_name(device),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        kernel_rows=kernel_rows,
        model_rows=model_rows,
    )


def as_document(figures: Figures) -> str:
    """The figures as JSON."""
    return json.dumps(asdict(figures), indent=2)


def print_tables(figures: Figures) -> None:
    """Prints the figures as tables."""
    console = Console(highlight=False)
    # Texts, as a str would be parsed as markup: the name of a model may have brackets.
    summary = Text(f"{figures.model} on {figures.device}, attention by ")
    summary.append(figures.kernels, style="bold")
    console.print(summary.append(f", {figures.threads} threads, torch {figures.torch}"))
    kernels = Table("attention", title="One image of 800 x 1333", title_justify="left")
    for heading in ("queries", "type", "PyTorch ms", "ours ms", "ratio"):
        kernels.add_column(heading, justify="right")
    for row in figures.kernel_rows:
        times = (f"{row.pytorch_ms:.2f}", f"{row.ours_ms:.2f}", f"{row.ratio:.1f}x")
        kernels.add_row(row.name, str(row.queries), row.dtype, *times)
    models = Table("batch", title="The model, images of 640 x 480", title_justify="left")
    for heading in ("input", "PyTorch ms", "ours ms", "images per second", "ratio"):
        models.add_column(heading, justify="right")
    for line in figures.model_rows:
        size = f"{line.padded_width} x {line.padded_height}"
        times = (f"{line.pytorch_ms:.1f}", f"{line.ours_ms:.1f}", f"{line.images_per_second:.2f}")
        models.add_row(str(line.batch), size, *times, f"{line.ratio:.1f}x")
    console.print(kernels, models, sep="\n")


def _kernel(work: Workload, device: torch.device, seconds: float) -> KernelFigures:
    _report(f"attention: {work.name}")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    exact = cast(random_inputs(work), torch.float32, device)
    ours = cast(exact, dtype, device)
    times = _alternate(
        (partial(official_formula, work, exact), partial(compiled_kernels, work, ours)),
        device,
        seconds,
    )
    name = str(dtype).removeprefix("torch.")
    return KernelFigures(work.name, work.queries, name, *_compared(*times))


def _model(predictor: Predictor, batch: int, seconds: float) -> ModelFigures:
    _report(f"model: batch of {batch}")
    config = predictor.config
    resized = resized_size(*_IMAGE_SIZE, config.shortest_side, config.longest_side)
    padded = padded_size(*resized, config.bucket_stride)
    noise = np.random.default_rng(0).integers(0, 256, (batch, *resized, 3), dtype=np.uint8)
    images = list(noise)

    def detect(choice: ops.Implementation) -> None:
        ops.select_implementation(choice)
        predictor.predict(images, padded, [_IMAGE_SIZE] * batch)

    sides = (partial(detect, "reference"), partial(detect, "auto"))
    pytorch, ours, ratio = _compared(*_alternate(sides, predictor.device, seconds))
    rate = round(1000 * batch / ours, 2)
    return ModelFigures(batch, *padded, pytorch, ours, rate, ratio)


def _alternate(
    sides: tuple[Callable[[], object], Callable[[], object]], device: torch.device, seconds: float
) -> tuple[float, float]:
    """Median milliseconds of each side; the first round is a warm-up if there is a second one."""
    end = time.monotonic() + seconds
    taken: list[tuple[float, float]] = []
    while not taken or (time.monotonic() < end and len(taken) <= _MAX_ROUNDS):
        first, second = (_milliseconds(side, device) for side in sides)
        taken.append((first, second))
    counted = taken[1:] or taken
    pytorch, ours = zip(*counted, strict=True)
    return statistics.median(pytorch), statistics.median(ours)


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - started)


def _compared(pytorch: float, ours: float) -> tuple[float, float, float]:
    return round(pytorch, 3), round(ours, 3), round(pytorch / ours, 2)


def _report(what: str) -> None:
    if sys.stderr.isatty():
        print(f"measuring {what} ...", file=sys.stderr, flush=True)
