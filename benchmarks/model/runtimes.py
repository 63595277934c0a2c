"""The default model on a CPU beside the runtimes that a user could take instead.

    OMP_WAIT_POLICY=passive python -m benchmarks.model.runtimes [--rounds 30] [--batch 1]
        [--model default] [--sizes 384x512 64x64]
        [--sides ours onnxruntime openvino compile pytorch] [--name runtimes]

The model is the default one, or with `--model r50` the R50 model with random weights.

Every side has the same weights, in float32, the same images and the same number of threads, and
runs in a process of its own, ONNX Runtime and OpenVINO in an environment of their own below
`--environments`, which is made when it is missing. The sides take turns, one image each. They read
what `lite-detr export --format onnx` writes. "compile" is torch.compile of the inference network
with the attention's kernels. "start" is the time from the start of the process's own work to its
first result. Writes NAME.json and NAME.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.model.plain_pytorch import plain_pytorch
from benchmarks.model.turns import Side, environment_of, peak_mib, take_turns
from benchmarks.random_r50 import random_r50_detector
from benchmarks.report import RESULTS, conditions, table, version_of, write_report
from model import ops
from model.export.network import ExportedNetwork
from model.export.onnx_file import encode_onnx
from model.network import onednn
from model.network.detector import LiteDETR
from model.network.inference import prepare_for_inference
from model.weights.checkpoint import load_detector
from model.weights.info import resolve_model
from service.cpus import usable_cpus
from service.engine.host_memory import keep_freed_memory

# Sides with an environment of their own, and what it has next to numpy.
PACKAGES = {"onnxruntime": "onnxruntime==1.32.0", "openvino": "openvino==2026.4.1"}
SIDES = ("ours", *PACKAGES, "compile", "pytorch")


@dataclass(frozen=True)
class Row:
    """Figures of one side on images of one size."""

    size: str
    side: str
    wall_ms: float  # medians, as are the ratios of each turn
    cpu_ms: float
    wall_ratio: float  # this side / ours
    cpu_ratio: float
    start_seconds: float
    peak_mib: float
    logit_difference: float  # the largest one to ours


def _detector(model: str) -> LiteDETR:
    return (
        load_detector(resolve_model("default"))[0] if model == "default" else random_r50_detector()
    )


def work(side: str, inputs: Path, options: argparse.Namespace) -> None:
    """The process of a side in this environment; see `runtime_worker`."""
    torch.set_num_threads(options.threads)
    pixels = torch.from_numpy(np.load(inputs))
    began = time.perf_counter()
    if side != "pytorch":
        keep_freed_memory()  # as the engine does
    run = _runner(side, _detector(options.model), pixels)
    with torch.inference_mode():
        logits = run()
        started = time.perf_counter() - began
        run()
        ready = {"start_seconds": started, "peak_mib": peak_mib(), "logits": logits.tolist()}
        take_turns(ready, run)


def _runner(side: str, detector: LiteDETR, pixels: Tensor) -> Callable[[], Tensor]:
    mask = torch.zeros(pixels.shape[0], *pixels.shape[2:], dtype=torch.bool)
    if side == "pytorch":

        def run_plainly() -> Tensor:
            with plain_pytorch():
                output: Tensor = detector(pixels, mask).pred_logits
            return output

        return run_plainly
    if side == "ours":
        network: Callable[..., Any] = prepare_for_inference(detector)
    else:
        with onednn.not_used():  # whose layouts inductor does not take
            network = torch.compile(prepare_for_inference(detector))
    return lambda: network(pixels, mask).pred_logits


def measure(size: str, options: argparse.Namespace, folder: Path) -> list[Row]:
    """Times all sides in turns on images of one size."""
    height, width = map(int, size.split("x"))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(options.batch, 3, height, width, generator=generator)
    inputs, file = folder / f"{size}.npy", folder / f"{size}.onnx"
    np.save(inputs, pixels.numpy())
    if set(PACKAGES) & set(options.sides):
        network = ExportedNetwork(_detector(options.model), (height, width), padded=False)
        with ops.computed_by("gathers"):
            file.write_bytes(encode_onnx(network, {}))
    sides = []
    for name in options.sides:
        command = [sys.executable, "-m", "benchmarks.model.runtimes", "--threads"]
        command += [str(options.threads), "--model", options.model, "--worker", name, str(inputs)]
        if name in PACKAGES:
            python = environment_of(options.environments / name, PACKAGES[name])
            command = [python, "-m", "benchmarks.model.runtime_worker"]
            command += [name, str(file), str(inputs), str(options.threads)]
        sides.append(Side(name, command))
    for _ in range(options.rounds):
        for each in sides:
            each.run()
    ours = sides[0]
    rows = []
    for each in sides:
        each.close()
        (walls, cpus), (our_walls, our_cpus) = (zip(*s.times, strict=True) for s in (each, ours))
        row = Row(
            size=size,
            side=each.name,
            wall_ms=round(statistics.median(walls) * 1000, 2),
            cpu_ms=round(statistics.median(cpus) * 1000, 2),
            wall_ratio=_ratio(walls, our_walls),
            cpu_ratio=_ratio(cpus, our_cpus),
            start_seconds=round(each.ready["start_seconds"], 2),
            peak_mib=round(each.ready["peak_mib"]),
            logit_difference=_difference(each.ready["logits"], ours.ready["logits"]),
        )
        rows.append(row)
        print(json.dumps(asdict(row)), file=sys.stderr, flush=True)
    return rows


def _difference(logits: list[Any], ours: list[Any]) -> float:
    one, other = (np.array(each, dtype=np.float32) for each in (logits, ours))
    return float(np.abs(one - other).max())


def _ratio(times: Sequence[float], ours: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(times, ours, strict=True)), 3)


def to_markdown(rows: Sequence[Row]) -> str:
    """The report's table."""
    columns = ("images", "side", "wall, ms", "CPU, ms", "wall / ours", "CPU / ours", "start, s")
    cells = [
        (
            *(row.size, row.side, f"{row.wall_ms}", f"{row.cpu_ms}"),
            *(f"{row.wall_ratio}", f"{row.cpu_ratio}", f"{row.start_seconds}"),
            *(f"{row.peak_mib}", f"{row.logit_difference:.1e}"),
        )
        for row in rows
    ]
    return table((*columns, "peak, MiB", "largest difference of logits"), cells, texts=2)


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description="Time a model in several runtimes.")
    parser.add_argument("--model", choices=("default", "r50"), default="default")
    parser.add_argument("--name", default="runtimes", help="name of the report's files")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1, help="images a call")
    parser.add_argument("--sizes", nargs="+", default=["384x512", "64x64"], metavar="HxW")
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument(
        "--environments", type=Path, default=Path.home() / ".cache/lite-detr/runtimes"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "model")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], Path(options.worker[1]), options)
        return
    options.sides = ["ours", *(side for side in options.sides if side != "ours")]
    document = conditions()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            rows += measure(size, options, Path(folder))
    versions = {"torch": torch.__version__} | {
        side: version_of(side, environment_of(options.environments / side, PACKAGES[side]))
        for side in options.sides
        if side in PACKAGES
    }
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    document |= {
        "model": options.model,
        "threads": options.threads,
        "rounds": options.rounds,
        "batch": options.batch,
    }
    document |= {"versions": versions, "rows": [asdict(row) for row in rows]}
    sections = [
        f"{named}; {options.threads} threads, {options.rounds} turns, {options.batch} images a "
        "call. Medians; ratios are taken within a turn.\n",
        to_markdown(rows),
    ]
    model = "The default model" if options.model == "default" else "R50 with random weights"
    title = f"{model} in several runtimes on a CPU"
    write_report(options.output / options.name, title, document, sections)


if __name__ == "__main__":
    main()
