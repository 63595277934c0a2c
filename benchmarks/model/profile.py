"""Where an image's time goes in the inference network, and how far that is from the floor.

    OMP_WAIT_POLICY=passive python -m benchmarks.model.profile [--repeats 3] [--output FOLDER]

CPU time (all threads) of each part, and within it of its matrix products and convolutions. The
floor is what those would take at the rate of the best of a few large products measured in the
same run. What is left is attention kernels, norms, sums, copies. Writes profile.json and .md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.model.cpu import batch_of, network_of
from model.inference.layers import Convolution, Product
from model.inference.memory import keep_freed_memory
from model.inference.network import InferenceDetector
from service.cpus import usable_cpus

_ROOT = Path(__file__).resolve().parents[2]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_GEMMS = ((4433, 256, 2048), (4433, 2048, 256), (2048, 2048, 2048))  # rows, inputs, outputs


@dataclass
class Part:
    """One part of a network; milliseconds of CPU time an image."""

    model: str
    precision: str
    part: str
    total_ms: float = 0.0
    products_ms: float = 0.0
    gflop: float = 0.0
    floor_ms: float = 0.0


def parts_of(network: InferenceDetector) -> dict[str, list[nn.Module]]:
    """The modules of each part."""
    layers = list(network.encoder.layers)
    return {
        "backbone": [network.backbone],
        "input projections": list(network.projections),
        "encoder: values": [layer.sampled for layer in layers],  # type: ignore[misc]
        "encoder: attention": [layer.attention for layer in layers],  # type: ignore[misc]
        "encoder: feed-forward": [
            module
            for layer in layers
            for module in (layer.feedforward, layer.small)
            if isinstance(module, nn.Module)
        ],
        "query selection": [network.selection],
        "decoder: values": [network.decoder.sampled],
        "decoder: the rest": [network.decoder],
    }


def flops_of(module: nn.Module, x: Tensor, result: Tensor) -> float:
    """Multiplications and additions of one call."""
    if isinstance(module, Product):
        return 2.0 * result.numel() * x.shape[-1]
    assert isinstance(module, Convolution)
    if module.product is not None:
        return 2.0 * result.numel() * x.shape[1]
    return 2.0 * result.numel() * module.get_buffer("weight")[0].numel()


def watch(module: nn.Module, tell: Callable[[float, Tensor, Tensor], None]) -> None:
    """Tells the CPU seconds of each call, its first input and its result."""
    begun: list[float] = []

    def before(*_: Any) -> None:
        begun.append(time.process_time())

    def after(_: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
        tell(time.process_time() - begun.pop(), inputs[0], result)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


def best_rate(dtype: torch.dtype) -> float:
    """The most GFLOP a CPU second that large products reach here."""
    best = 0.0
    for rows, inputs, outputs in _GEMMS:
        product, x = Product(nn.Linear(inputs, outputs), dtype), torch.randn(1, rows, inputs)
        x = x.to(dtype)
        for _ in range(6):
            started = time.process_time()
            product(x)
            seconds = time.process_time() - started
            best = max(best, 2e-9 * rows * inputs * outputs / seconds)
    return best


def measure(model: str, precision: str, repeats: int) -> list[Part]:
    """Means over some images, after one that is not counted."""
    detector, size = network_of(model)
    network = InferenceDetector(detector, _DTYPES[precision]).eval()  # type: ignore[arg-type]
    images, mask = batch_of(size)
    network(images, mask)
    rate = best_rate(_DTYPES[precision])
    rows = {name: Part(model, precision, name) for name in (*parts_of(network), "all")}

    def count(row: Part) -> Callable[[float, Tensor, Tensor], None]:
        def tell(seconds: float, *_: Any) -> None:
            row.total_ms += seconds * 1000 / repeats

        return tell

    def count_product(row: Part, module: nn.Module) -> Callable[[float, Tensor, Tensor], None]:
        def tell(seconds: float, x: Tensor, result: Tensor) -> None:
            row.products_ms += seconds * 1000 / repeats
            row.gflop += flops_of(module, x, result) / 1e9 / repeats

        return tell

    watch(network, count(rows["all"]))
    seen: set[nn.Module] = set()
    for name, modules in parts_of(network).items():
        for module in modules:
            watch(module, count(rows[name]))
            for inner in module.modules():
                # A 1x1 convolution is counted once, as the product that it is.
                is_product = isinstance(inner, Product) or (
                    isinstance(inner, Convolution) and inner.product is None
                )
                if is_product and inner not in seen:
                    seen.add(inner)
                    watch(inner, count_product(rows[name], inner))
    for _ in range(repeats):
        network(images, mask)
    rows["decoder: the rest"].total_ms -= rows["decoder: values"].total_ms
    for row in rows.values():
        if row.part != "all":
            rows["all"].products_ms += row.products_ms
            rows["all"].gflop += row.gflop
        row.floor_ms = row.gflop / rate * 1000
    return [*rows.values()]


def to_markdown(rows: list[Part]) -> str:
    """The table for people."""
    lines = [
        "# Where an image's CPU time goes",
        "",
        "Made by `python -m benchmarks.model.profile`; milliseconds of CPU time, all threads.",
        "",
        "| model | precision | part | all | its products | their floor | the rest | GFLOP |",
        "| --- | --- | --- |" + " ---: |" * 5,
    ]
    lines += [
        f"| {row.model} | {row.precision} | {row.part} | {row.total_ms:.1f} "
        f"| {row.products_ms:.1f} | {row.floor_ms:.1f} | {row.total_ms - row.products_ms:.1f} "
        f"| {row.gflop:.1f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description="Profile the inference network.")
    parser.add_argument("--models", nargs="+", default=["default", "r50"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=_ROOT / "benchmarks/results/model")
    options = parser.parse_args()
    torch.set_num_threads(usable_cpus())
    keep_freed_memory()
    rows: list[Part] = []
    with torch.inference_mode():
        for model in options.models:
            for precision in _DTYPES:
                rows += measure(model, precision, options.repeats)
    print(to_markdown(rows))
    (options.output / "profile.json").write_text(
        json.dumps([asdict(row) for row in rows], indent=2) + "\n"
    )
    (options.output / "profile.md").write_text(to_markdown(rows))


if __name__ == "__main__":
    main()
