"""The attention kernels on a GPU: correctness and speed, in three commands.

    python -m benchmarks.kernels.gpu check   [--seconds 40]   against float64, on random shapes
    python -m benchmarks.kernels.gpu repeat                   streams, CUDA graphs, batches, repeats
    python -m benchmarks.kernels.gpu time    [--repeats 30]   compared with the official formula

Each takes --device and --json FILE and exits with status 1 after a failure. `--device cpu --small`
runs the same on the CPU kernels, which tests this script.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.report import write
from model import ops
from model.ops import reference
from model.ops.workloads import (
    PHOTO,
    Inputs,
    Workload,
    cast,
    compiled_kernels,
    official_formula,
    random_inputs,
)

# Largest error for values of about 1, relative to the largest exact output where that exceeds 1.
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
_BASELINE_RATIO = 25.0
_L2_BYTES = 512 << 20  # larger than any L2 cache: writing this much evicts everything else
_SIZES = ((22_223, "all tokens"), (5_523, "high-level tokens"), (900, "decoder"))
_SMALL = ((16, 20), (8, 10), (4, 5), (2, 3))


@dataclass(frozen=True)
class Call:
    """One call's tensors; no `key`: keys are the values; no `query`: plain attention."""

    spatial_shapes: tuple[tuple[int, int], ...]
    value: Tensor
    reference_points: Tensor
    sampling_offsets: Tensor
    query: Tensor | None
    key: Tensor | None
    logits: Tensor | None

    def run(self, implementation: Any) -> Tensor:
        """Computes the attention with `model.ops` or its reference."""
        located = (self.spatial_shapes, self.reference_points, self.sampling_offsets)
        output: Tensor
        if self.query is None:
            output = implementation.ms_deform_attn(self.value, *located, self.logits)
        else:
            output = implementation.key_aware_deform_attn(
                self.query, self.key, self.value, *located
            )
        return output

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The call with `change` applied to every tensor."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: change(t) for name, t in tensors.items() if isinstance(t, Tensor)}
        return replace(self, **changed)  # type: ignore[arg-type]


def random_call(chance: random.Random, device: torch.device, dtype: torch.dtype) -> Call:
    """Random shapes; points are inside, at the edge, outside, and some NaN or infinite."""
    levels = chance.randint(1, 5)
    shapes = tuple((chance.randint(1, 40), chance.randint(1, 40)) for _ in range(levels))
    batch, queries, heads = chance.randint(1, 4), chance.randint(1, 300), chance.randint(1, 9)
    channels, points = chance.choice((8, 16, 32, 64, 128)), chance.randint(1, 6)
    tokens = sum(height * width for height, width in shapes)
    generator = torch.Generator().manual_seed(chance.randrange(2**31))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    offsets = 3.0 * normal(batch, queries, heads, chance.choice((1, levels)), points, 2)
    odd = torch.rand(offsets.shape, generator=generator).to(device)
    offsets = offsets.masked_fill(odd < 0.01, float("nan")).masked_fill(odd > 0.99, float("inf"))  # noqa: PLR2004
    references = torch.rand(batch, queries, levels, chance.choice((2, 4)), generator=generator)
    kind = chance.choice(("plain", "shared", "separate"))
    return Call(
        shapes,
        normal(batch, tokens, heads, channels),
        references.to(device),
        offsets,
        None if kind == "plain" else normal(batch, queries, heads, channels),
        normal(batch, tokens, heads, channels) if kind == "separate" else None,
        normal(batch, queries, heads, levels * points) if kind == "plain" else None,
    )


def check(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Random calls against the reference in float64 on the CPU, for `options.seconds`."""
    chance, worst, calls = random.Random(options.seed), dict.fromkeys(_TOLERANCES, 0.0), 0
    end = time.monotonic() + options.seconds
    failures: list[str] = []
    while time.monotonic() < end and len(failures) < 5:  # noqa: PLR2004
        for dtype, tolerance in _TOLERANCES.items():
            if device.type == "cpu" and dtype == torch.float16:
                continue
            call = random_call(chance, device, dtype)
            exact = call.mapped(lambda tensor: tensor.cpu().double()).run(reference)
            output = call.run(ops)
            scale = max(1.0, float(exact.abs().max()))
            error = float((output.cpu().double() - exact).abs().max()) / scale
            worst[dtype], calls = max(worst[dtype], error), calls + 1
            if not error <= tolerance:
                failures.append(f"call {calls}: {dtype} off by {error}")
    errors = {str(dtype): error for dtype, error in worst.items()}
    return {"calls": calls, "seed": options.seed, "worst_error": errors, "failures": failures}


def repeat(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Equal bits in every repetition: on any stream, replayed, alone and in a batch."""
    failures: list[str] = []
    shapes = _SMALL if options.small else PHOTO
    for key_aware in (True, False):
        workload = Workload("repeat", key_aware, shapes, 3, 8, 400)
        for dtype in (torch.float32, torch.bfloat16):
            name = f"{'key-aware' if key_aware else 'plain'} {dtype}"
            inputs = cast(random_inputs(workload), dtype, device)
            together = compiled_kernels(workload, inputs)
            if not torch.equal(compiled_kernels(workload, inputs), together):
                failures.append(f"{name}: two runs differ")
            alone = replace(workload, batch=1)
            for image in range(workload.batch):
                part = {f.name: getattr(inputs, f.name)[image : image + 1] for f in fields(inputs)}
                if not torch.equal(
                    compiled_kernels(alone, Inputs(**part)), together[image : image + 1]
                ):
                    failures.append(f"{name}: image {image} alone differs from the batch")
            if device.type == "cuda":
                failures += _on_streams(name, workload, inputs, together)
    failures += [] if device.type == "cpu" or options.small else _beyond_32_bits(device)
    return {"failures": failures}


def _on_streams(name: str, workload: Workload, inputs: Inputs, expected: Tensor) -> list[str]:
    failures = []
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        on_side = compiled_kernels(workload, inputs)
    torch.cuda.current_stream().wait_stream(side)
    if not torch.equal(on_side, expected):
        failures.append(f"{name}: results on another stream differ")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = compiled_kernels(workload, inputs)
    inputs.value.mul_(0.5)
    halved = compiled_kernels(workload, inputs)
    graph.replay()
    torch.cuda.synchronize()
    if not torch.equal(recorded, halved):
        failures.append(f"{name}: a replayed graph does not use its changed inputs")
    inputs.value.mul_(2.0)
    return failures


def _beyond_32_bits(device: torch.device) -> list[str]:
    """Compares the last image of a batch whose values have more than 2^31 elements."""
    workload = Workload("large", True, PHOTO, 400, 8, 16)  # 400 * 22,223 * 256 = 2.3e9
    one = cast(random_inputs(replace(workload, batch=1)), torch.float16, device)
    values = torch.zeros(400, *one.value.shape[1:], dtype=torch.float16, device=device)
    values[-1] = one.value[0]
    others = {
        f.name: getattr(one, f.name).expand(400, *getattr(one, f.name).shape[1:])
        for f in fields(one)
        if f.name != "value"
    }
    output = compiled_kernels(workload, Inputs(value=values, **others))
    same = torch.equal(output[-1:], compiled_kernels(replace(workload, batch=1), one))
    return [] if same else ["images beyond 2^31 elements are read from wrong addresses"]


def measure(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """Medians, compared with the official formula in float32."""
    rows, failures = [], []
    for key_aware in (True, False):
        for queries, place in _SIZES:
            shapes = _SMALL if options.small else PHOTO
            tokens = sum(height * width for height, width in shapes)
            count = min(queries, tokens)
            workload = Workload(place, key_aware, shapes, 1, 8, count)
            exact = cast(random_inputs(workload), torch.float32, device)
            official = _median_ms(
                lambda: official_formula(workload, exact),  # noqa: B023 - called at once
                device,
                options.repeats,
                cold=False,
            )
            for dtype in _TOLERANCES:
                if device.type == "cpu" and dtype == torch.float16:
                    continue
                inputs = cast(exact, dtype, device)

                def run() -> Tensor:
                    return compiled_kernels(workload, inputs)  # noqa: B023 - called at once

                warm = _median_ms(run, device, options.repeats, cold=False)
                cold = _median_ms(run, device, options.repeats, cold=True)
                row = {
                    "attention": "key-aware" if key_aware else "plain",
                    "queries": count,
                    "place": place,
                    "dtype": str(dtype).removeprefix("torch."),
                    "official_float32_ms": round(official, 4),
                    "warm_ms": round(warm, 4),
                    "cold_ms": round(cold, 4),
                    "ratio": round(official / warm, 1),
                }
                rows.append(row)
                print(row, flush=True)
                short = key_aware and queries == _SIZES[0][0] and row["ratio"] < _BASELINE_RATIO  # type: ignore[operator]
                if short and dtype == torch.float16 and not options.small:
                    failures.append(f"key-aware is only {row['ratio']}x the official formula")
    return {"rows": rows, "failures": failures}


def _median_ms(
    run: Callable[[], Tensor], device: torch.device, repeats: int, *, cold: bool
) -> float:
    """The median of single calls; cold: the caches are emptied before each."""
    on_gpu = device.type == "cuda"
    flood = torch.empty(_L2_BYTES if on_gpu and cold else 0, dtype=torch.int8, device=device)
    times = []
    for number in range(repeats + 3):
        flood.zero_()
        if on_gpu:
            # The GPU waits first, so that the launch on the CPU is over when the timing begins.
            torch.cuda._sleep(200_000)  # type: ignore[no-untyped-call]
            begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            begin.record()
            run()
            end.record()
            end.synchronize()
            taken: float = begin.elapsed_time(end)
        else:
            started = time.perf_counter()
            run()
            taken = 1000.0 * (time.perf_counter() - started)
        if number >= 3:  # noqa: PLR2004 - the first ones warm up
            times.append(taken)
    return statistics.median(times)


def main() -> int:
    """Runs one command; returns 1 after a failure."""
    parser = argparse.ArgumentParser(description="Check and time the GPU kernels.")
    commands = {"check": check, "repeat": repeat, "time": measure}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small feature maps")
    parser.add_argument("--seconds", type=float, default=40.0, help="duration of check")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    with torch.inference_mode():
        results = commands[options.command](device, options)
    compiled = ops.implementation_name(device)
    if compiled == "reference":
        results["failures"].append("the compiled kernels are not in use")
    write(options.json, device, results)
    return 1 if results["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
