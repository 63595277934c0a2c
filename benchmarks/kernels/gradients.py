"""Gradients of attention on a GPU: correctness, speed and memory, in two commands.

    python -m benchmarks.kernels.gradients check [--calls 60]    against float64, on random shapes
    python -m benchmarks.kernels.gradients time  [--repeats 10]  against plain PyTorch

Each takes --device and --results FILE, writes a line of JSON per result as soon as it is known, and
exits with status 1 after a failure. `--device cpu --small` runs the same on the CPU kernels, which
tests this script.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.results import Results
from benchmarks.kernels.gpu import Call, random_call, random_sizes
from model import ops
from model.ops import reference
from model.ops.workloads import PHOTO, Workload, cast, compiled_kernels, random_inputs

# Largest error relative to the largest exact gradient, or to 1.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}
_SMALL = ((16, 20), (8, 10), (4, 5), (2, 3))
_SIZES = (22_223, 5_523, 900)
TIMED_DTYPES = (torch.float32, torch.float16)


def gradients(call: Call, implementation: Any) -> dict[str, Tensor]:
    """Of all inputs of a call, for a gradient of the output that is random but always the same."""
    leaves = call.mapped(lambda tensor: tensor.detach().requires_grad_())
    output = leaves.run(implementation)
    generator = torch.Generator().manual_seed(1)
    given = torch.randn(output.shape, generator=generator)
    torch.autograd.backward(output, given.to(output.device, output.dtype))
    tensors = {field.name: getattr(leaves, field.name) for field in fields(leaves)}
    return {
        name: tensor.grad
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor) and tensor.grad is not None
    }


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Deterministic algorithms inside the block, if wanted."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def check(device: torch.device, options: argparse.Namespace, results: Results) -> None:
    """Random calls against the reference in float64 on the CPU; deterministic ones twice."""
    chance, sizes = random.Random(options.seed), random_sizes(options.seed)
    for number in range(options.calls):
        for dtype, tolerance in _TOLERANCES.items():
            if device.type == "cpu" and dtype == torch.float16:
                continue
            call = random_call(chance, device, dtype, sizes[number // 2 % len(sizes)])
            exact = gradients(call.mapped(lambda tensor: tensor.cpu().double()), reference)
            reproducible = number % 2 == 1
            with deterministic(reproducible):
                found = gradients(call, ops)
                again = gradients(call, ops) if reproducible else found
            errors = {}
            for name, gradient in found.items():
                scale = max(1.0, float(exact[name].abs().max()))
                errors[name] = float((gradient.cpu().double() - exact[name]).abs().max()) / scale
            problems = [name for name, error in errors.items() if not error <= tolerance]
            differing = [name for name in found if not torch.equal(found[name], again[name])]
            problems += [f"{name}, repeated" for name in differing]
            results.row(call=number, dtype=str(dtype), errors=errors, problems=problems)
            for problem in problems:
                results.fail(f"call {number}, {dtype}: gradient of {problem}")


def measure(device: torch.device, options: argparse.Namespace, results: Results) -> None:
    """Medians of forward and backward pass together, and the memory that they take."""
    for work in workloads(small=options.small):
        for dtype in TIMED_DTYPES:
            if device.type == "cpu" and dtype == torch.float16:
                continue
            for name, choice, exact in (
                ("ours", "auto", False),
                ("ours, deterministic", "auto", True),
                ("plain PyTorch", "reference", False),
            ):
                label: dict[str, Any] = {
                    "attention": "key-aware" if work.key_aware else "plain",
                    "queries": work.queries,
                    "dtype": str(dtype),
                    "implementation": name,
                }
                with results.guarded(str(label)), ops.computed_by(choice), deterministic(exact):  # type: ignore[arg-type]
                    milliseconds, mib = _forward_and_backward(work, dtype, device, options.repeats)
                    results.row(**label, milliseconds=round(milliseconds, 4), peak_mib=mib)


def workloads(*, small: bool = False) -> list[Workload]:
    """What is timed, on small maps to try the script."""
    shapes = _SMALL if small else PHOTO
    tokens = sum(height * width for height, width in shapes)
    return [
        Workload("", key_aware, shapes, 1, 8, min(queries, tokens), training=True)
        for key_aware in (True, False)
        for queries in _SIZES
    ]


def _forward_and_backward(
    work: Workload, dtype: torch.dtype, device: torch.device, repeats: int
) -> tuple[float, int | None]:
    """Median milliseconds, and MiB above the inputs on a GPU."""
    exact = random_inputs(work)
    inputs = cast(exact, dtype, device)
    leaves = {field.name: getattr(inputs, field.name).detach() for field in fields(inputs)}
    for name, tensor in leaves.items():
        tensor.requires_grad_(name != "reference_points")
    inputs = replace(inputs, **leaves)
    on_gpu, times, before = device.type == "cuda", [], 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    for _ in range(repeats + 2):
        _wait(device)
        started = time.perf_counter()
        output = compiled_kernels(work, inputs)
        torch.autograd.backward(output, torch.ones_like(output))
        _wait(device)
        times.append(1000.0 * (time.perf_counter() - started))
        for tensor in leaves.values():
            tensor.grad = None
    peak = (torch.cuda.max_memory_allocated(device) - before) >> 20 if on_gpu else None
    return statistics.median(times[2:]), peak


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> int:
    """Runs one command; returns 1 after a failure."""
    parser = argparse.ArgumentParser(description="Check and time the gradients of attention.")
    commands = {"check": check, "time": measure}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small feature maps")
    parser.add_argument("--calls", type=int, default=60, help="of each type, for check")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    results = Results(options.results, device)
    commands[options.command](device, options, results)
    results.row(kernels=ops.implementation_name(device), failures=ops.kernel_failures(device))
    if ops.implementation_name(device) == "reference":
        results.fail("the compiled kernels are not in use")
    return results.exit_status


if __name__ == "__main__":
    sys.exit(main())
