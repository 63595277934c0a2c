"""The attention kernels on a GPU: correctness. For their times: `benchmarks.gpu.attention`.

    python -m benchmarks.kernels.gpu check   [--seconds 40]   against float64, on random shapes
    python -m benchmarks.kernels.gpu repeat                   streams, CUDA graphs, batches, repeats
    python -m benchmarks.kernels.gpu prepare [--architecture 90]   compiles, without a GPU

Each takes --device and --results FILE and exits with status 1 after a failure. `--device cpu
--small` runs the same on the CPU kernels, which tests this script. `prepare` writes to the folder
of kernels that are compiled ahead (see `model.ops.cuda_ahead`); otherwise `check` spends its time
on compilation.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.results import Results
from model import VARIANTS, ops
from model.native.prebuilt import DIRECTORY
from model.ops import cuda_ahead, reference
from model.ops.nvrtc import machine_code
from model.ops.workloads import (
    PHOTO,
    Inputs,
    Workload,
    cast,
    compiled_kernels,
    random_inputs,
)

# Largest error for values of about 1, relative to the largest exact output where that exceeds 1.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
_COMPILED = 9  # sizes that `check` uses; each in three types
_KINDS = ("plain", "shared", "separate")
_MANY_QUERIES = 1100  # at least; a kernel for few queries splits the points of each
_REPORTED = 60  # calls after which `check` writes what it has found
REPEATED_DTYPES = (torch.float32, torch.bfloat16)
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


@dataclass(frozen=True)
class Sizes:
    """What a kernel is compiled for, but its number types."""

    kind: str
    channels: int
    heads: int
    levels: int
    points: int
    reference_size: int
    offset_levels: int
    queries: tuple[int, int]  # least and most; few queries have another kernel


def random_sizes(seed: int) -> list[Sizes]:
    """A few sizes, so that few kernels are compiled."""
    chance = random.Random(seed)
    return [_sizes(chance, kind) for _ in range(_COMPILED // 3) for kind in _KINDS]


def _sizes(chance: random.Random, kind: str) -> Sizes:
    levels = chance.randint(1, 5)
    return Sizes(
        kind,
        chance.choice((8, 16, 32, 64, 128)),
        chance.randint(1, 9),
        levels,
        chance.randint(1, 6),
        chance.choice((2, 4)),
        chance.choice((1, levels)),
        chance.choice(((1, 300), (1, 300), (_MANY_QUERIES, _MANY_QUERIES + 300))),
    )


def random_call(
    chance: random.Random, device: torch.device, dtype: torch.dtype, sizes: Sizes | None = None
) -> Call:
    """Random maps; points are inside, at the edge, outside, and some NaN or infinite."""
    sizes = sizes or _sizes(chance, chance.choice(_KINDS))
    shapes = tuple((chance.randint(1, 40), chance.randint(1, 40)) for _ in range(sizes.levels))
    queries = chance.randint(*sizes.queries)
    batch = chance.randint(1, 4) if queries < _MANY_QUERIES else 1
    heads, channels, points = sizes.heads, sizes.channels, sizes.points
    tokens = sum(height * width for height, width in shapes)
    generator = torch.Generator().manual_seed(chance.randrange(2**31))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    offsets = 3.0 * normal(batch, queries, heads, sizes.offset_levels, points, 2)
    odd = torch.rand(offsets.shape, generator=generator).to(device)
    offsets = offsets.masked_fill(odd < 0.01, float("nan")).masked_fill(odd > 0.99, float("inf"))  # noqa: PLR2004
    references = torch.rand(batch, queries, sizes.levels, sizes.reference_size, generator=generator)
    plain, separate = sizes.kind == "plain", sizes.kind == "separate"
    return Call(
        shapes,
        normal(batch, tokens, heads, channels),
        references.to(device),
        offsets,
        None if plain else normal(batch, queries, heads, channels),
        normal(batch, tokens, heads, channels) if separate else None,
        normal(batch, queries, heads, sizes.levels * points) if plain else None,
    )


def check(device: torch.device, options: argparse.Namespace, results: Results) -> None:
    """Random calls against the reference in float64 on the CPU, for `options.seconds`."""
    chance, sizes = random.Random(options.seed), random_sizes(options.seed)
    worst, calls = dict.fromkeys(map(str, TOLERANCES), 0.0), 0
    end = time.monotonic() + options.seconds
    while time.monotonic() < end and calls < options.calls and len(results.failures) < 5:  # noqa: PLR2004
        for dtype, tolerance in TOLERANCES.items():
            if device.type == "cpu" and dtype == torch.float16:
                continue
            call = random_call(chance, device, dtype, sizes[calls // len(TOLERANCES) % len(sizes)])
            exact = call.mapped(lambda tensor: tensor.cpu().double()).run(reference)
            output = call.run(ops)
            scale = max(1.0, float(exact.abs().max()))
            error = float((output.cpu().double() - exact).abs().max()) / scale
            worst[str(dtype)], calls = max(worst[str(dtype)], error), calls + 1
            if not error <= tolerance:
                results.fail(f"call {calls}: {dtype} off by {error}")
        if calls % _REPORTED < len(TOLERANCES):
            results.row(calls=calls, seed=options.seed, worst_error=worst)
    results.row(calls=calls, seed=options.seed, worst_error=worst)


def prepare(_device: torch.device, options: argparse.Namespace, results: Results) -> None:
    """Compiles the kernels of `check` and of the models, where no GPU waits for it."""
    from benchmarks.gpu.variants import used_variants  # noqa: PLC0415 - it imports this module

    for variant in sorted(used_variants(options.seed), key=repr):
        machine_code(variant, divmod(options.architecture, 10), DIRECTORY, cache_required=True)
    files = cuda_ahead.build_all(VARIANTS.values(), [options.architecture], DIRECTORY)
    results.row(kernels_in_folder=len(files), bytes=sum(file.stat().st_size for file in files))


def repeated(*, small: bool = False) -> list[Workload]:
    """What `repeat` computes."""
    shapes = _SMALL if small else PHOTO
    return [Workload("repeat", key_aware, shapes, 3, 8, 400) for key_aware in (True, False)]


def repeat(device: torch.device, options: argparse.Namespace, results: Results) -> None:
    """Equal bits in every repetition: on any stream, replayed, alone and in a batch."""
    for workload in repeated(small=options.small):
        for dtype in REPEATED_DTYPES:
            name = f"{'key-aware' if workload.key_aware else 'plain'} {dtype}"
            with results.guarded(name):
                failures = _repeat(name, workload, dtype, device)
                results.row(repeated=name, failures=len(failures))
                for failure in failures:
                    results.fail(failure)
    if device.type == "cuda" and not options.small:
        with results.guarded("2^31 elements"):
            for failure in _beyond_32_bits(device):
                results.fail(failure)
            results.row(repeated="2^31 elements")


def _repeat(name: str, workload: Workload, dtype: torch.dtype, device: torch.device) -> list[str]:
    inputs = cast(random_inputs(workload), dtype, device)
    together = compiled_kernels(workload, inputs)
    failures = []
    if not torch.equal(compiled_kernels(workload, inputs), together):
        failures.append(f"{name}: two runs differ")
    alone = replace(workload, batch=1)
    for image in range(workload.batch):
        part = {f.name: getattr(inputs, f.name)[image : image + 1] for f in fields(inputs)}
        if not torch.equal(compiled_kernels(alone, Inputs(**part)), together[image : image + 1]):
            failures.append(f"{name}: image {image} alone differs from the batch")
    if device.type == "cuda":
        failures += _on_streams(name, workload, inputs, together)
    return failures


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


def main() -> int:
    """Runs one command; returns 1 after a failure."""
    parser = argparse.ArgumentParser(description="Check the GPU kernels.")
    commands = {"check": check, "repeat": repeat, "prepare": prepare}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small feature maps")
    parser.add_argument("--seconds", type=float, default=40.0, help="duration of check")
    parser.add_argument("--calls", type=int, default=100_000, help="at most, of check")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--architecture", type=int, default=90, help="of prepare")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    device = torch.device("cpu" if options.command == "prepare" else options.device)
    results = Results(options.results, device)
    with torch.inference_mode():
        commands[options.command](device, options, results)
    compiled = ops.implementation_name(device)
    results.row(kernels=compiled, kernel_failures=ops.kernel_failures(device))
    if compiled not in ("cpu", "cuda"):
        results.fail(f"not all kernels are in use: {compiled}")
    return results.exit_status


if __name__ == "__main__":
    sys.exit(main())
