"""CPU time of each part of the inference network, compared with a lower bound.

    OMP_WAIT_POLICY=passive python -m benchmarks.model.profile [--repeats 3] [--output FOLDER]

CPU time (all threads) of each part, and within it of its matrix products and convolutions. The
lower bound ("floor") is their time at the rate of the fastest of a few large products measured in
the same run. The rest is attention kernels, norms, sums, copies. Writes profile.json and .md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.model.cpu import DTYPES, batch_of, network_of
from benchmarks.report import RESULTS, conditions, table, write_report
from model.network.convolution import FoldedConvolution
from model.network.detector import LiteDETR
from model.network.inference import prepare_for_inference
from model.network.linear import Linear, PackedLinear
from service.cpus import usable_cpus
from service.engine.host_memory import keep_freed_memory

_GEMMS = ((4433, 256, 2048), (4433, 2048, 256), (2048, 2048, 2048))  # rows, inputs, outputs


@dataclass
class Part:
    """One part of a network; times are milliseconds of CPU time per image."""

    model: str
    precision: str
    part: str
    total_ms: float = 0.0
    products_ms: float = 0.0
    gflop: float = 0.0
    floor_ms: float = 0.0


def parts_of(network: LiteDETR) -> dict[str, list[nn.Module]]:
    """The modules of each part."""
    transformer = network.transformer
    layers = [*transformer.encoder.layers]
    feed_forward = ("linear1", "linear2", "norm2", "linear12", "linear22", "norm22")
    selection = ("enc_output", "enc_output_norm", "enc_out_class_embed", "enc_out_bbox_embed")
    attentions = [layer.get_submodule("self_attn") for layer in layers]
    return {
        "backbone": [network.backbone[0]],
        "input projections": [*network.input_proj],
        "encoder: values": [attention.get_submodule("value_proj") for attention in attentions],
        "encoder: attention": attentions,
        "encoder: feed-forward": [
            module
            for layer in layers
            for name, module in layer.named_children()
            if name in feed_forward
        ],
        "query selection": [transformer.get_submodule(name) for name in selection],
        "decoder: values": [
            layer.get_submodule("cross_attn.value_proj") for layer in transformer.decoder.layers
        ],
        "decoder: the rest": [transformer.decoder],
    }


def flops_of(module: nn.Module, x: Tensor, result: Tensor) -> float:
    """Number of multiplications and additions of one call."""
    if isinstance(module, PackedLinear):
        return 2.0 * result.numel() * x.shape[-1]
    assert isinstance(module, FoldedConvolution)
    if module.product is not None:
        return 2.0 * result.numel() * x.shape[1]
    return 2.0 * result.numel() * module.get_buffer("weight")[0].numel()


Record = Callable[[float, Tensor, Tensor], None]  # CPU seconds, first input, result of a call


def record_calls(module: nn.Module, record: Record) -> None:
    """Calls `record` after each call of a module."""
    begun: list[float] = []

    def before(*_: Any) -> None:
        begun.append(time.process_time())

    def after(_: nn.Module, inputs: tuple[Any, ...], result: Any) -> None:
        record(time.process_time() - begun.pop(), inputs[0], result)

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)


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


def measure(model: str, precision: str, repeats: int) -> list[Part]:
    """Means over `repeats` images, after one that is not counted."""
    detector, size = network_of(model)
    network = prepare_for_inference(detector, DTYPES[precision])
    images, mask = batch_of(size)
    network(images, mask)
    rate = best_rate(DTYPES[precision])
    rows = {name: Part(model, precision, name) for name in (*parts_of(network), "all")}

    def add_time(row: Part) -> Record:
        def record(seconds: float, *_: Any) -> None:
            row.total_ms += seconds * 1000 / repeats

        return record

    def add_product(row: Part, module: nn.Module) -> Record:
        def record(seconds: float, x: Tensor, result: Tensor) -> None:
            row.products_ms += seconds * 1000 / repeats
            row.gflop += flops_of(module, x, result) / 1e9 / repeats

        return record

    record_calls(network, add_time(rows["all"]))
    seen: set[nn.Module] = set()
    for name, modules in parts_of(network).items():
        for module in modules:
            record_calls(module, add_time(rows[name]))
            for inner in module.modules():
                # A 1x1 convolution holds a product, which is counted instead of it.
                is_product = isinstance(inner, PackedLinear) or (
                    isinstance(inner, FoldedConvolution) and inner.product is None
                )
                if is_product and inner not in seen:
                    seen.add(inner)
                    record_calls(inner, add_product(rows[name], inner))
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
    """The report's table."""
    columns = ("model", "precision", "part", "all", "products", "their floor", "the rest", "GFLOP")
    cells = []
    for row in rows:
        figures = (row.total_ms, row.products_ms, row.floor_ms, row.total_ms - row.products_ms)
        shown = [f"{figure:.1f}" for figure in (*figures, row.gflop)]
        cells.append((row.model, row.precision, row.part, *shown))
    return table(columns, cells, texts=3)


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description="Profile the inference network.")
    parser.add_argument("--models", nargs="+", default=["default", "r50"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "model")
    options = parser.parse_args()
    document = conditions()
    torch.set_num_threads(usable_cpus())
    keep_freed_memory()
    rows: list[Part] = []
    with torch.inference_mode():
        for model in options.models:
            for precision in DTYPES:
                rows += measure(model, precision, options.repeats)
    document["rows"] = [asdict(row) for row in rows]
    sections = ["Milliseconds of CPU time per image, all threads.\n", to_markdown(rows)]
    title = "CPU time of the network's parts"
    write_report(options.output / "profile", title, document, sections)


if __name__ == "__main__":
    main()
