"""Every fused convolution of R50, and sums with layer norm, compared with separate passes.

    python -m benchmarks.gpu.fusion [--device cuda] [--size 832 1344] [--batch 8] [--results FILE]

The inputs are those of a whole image, in float16. Free memory is filled with NaN before each fused
call: a kernel that reads its result before it writes it would show. The engine checks the same on
one small image when it loads (`service/engine/gpu_checks.py`). The sums are those of all tokens of
the images with a residual, as after the encoder's attention.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.pipeline import R50
from benchmarks.gpu.results import Results
from model import VARIANTS, build_detector, ops
from model.network import cuda_fusion
from model.network.convolution import FoldedConvolution
from model.network.inference import prepare_for_inference
from model.network.precision import compute_exactly_on_gpus
from model.ops.add_norm import add_layer_norm

_MAX_ERROR = 0.02  # of the largest value
_REPEATS = 7
_WIDTH = 256  # of the tokens


def main() -> int:
    """Compares and times; returns 1 if a result differs."""
    parser = argparse.ArgumentParser(description="Check the fused convolutions.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, nargs=2, default=(832, 1344), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    results = Results(options.results, device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    with torch.inference_mode():
        torch.manual_seed(0)
        backbone = prepare_for_inference(
            build_detector(VARIANTS[R50]).eval().to(device), dtype
        ).backbone[0]
        if device.type == "cuda":
            compute_exactly_on_gpus()
        batch = options.batch if device.type == "cuda" else 1
        images = torch.randn(batch, 3, *options.size, device=device)
        totals = {"fused_us": 0.0, "passes_us": 0.0}
        for name, layer, given in _calls(backbone, images):
            with results.guarded(name):
                row = _compare(layer, given)
                totals = {key: total + row[key] for key, total in totals.items()}
                results.row(layer=name, weight=list(layer.weight.shape), **row)
                if not row["error"] <= _MAX_ERROR:
                    results.fail(f"{name}: a fused convolution is off by {row['error']:.3g}")
        results.row(layer="all", batch=batch, **totals)
        del backbone, images
        with results.guarded("sum and layer norm"):
            _measure_norm(batch, options.size, dtype, device, results)
    return results.exit_status


def _measure_norm(
    batch: int, size: tuple[int, int], dtype: torch.dtype, device: torch.device, results: Results
) -> None:
    """The kernel of `model.ops.cuda_norm` against torch's two."""
    tokens = sum((size[0] // stride) * (size[1] // stride) for stride in (8, 16, 32, 64))
    x, residual = torch.randn(2, batch, tokens, _WIDTH, dtype=dtype, device=device)
    norm = nn.LayerNorm(_WIDTH, dtype=dtype, device=device)
    exact = F.layer_norm(x.float() + residual.float(), (_WIDTH,))
    error = float((add_layer_norm(x, residual, norm).float() - exact).abs().max())
    results.row(
        layer="sum and layer norm",
        rows=batch * tokens,
        error=error,
        fused_us=_microseconds(lambda: add_layer_norm(x, residual, norm), device),
        passes_us=_microseconds(lambda: norm(x + residual), device),
    )
    if not error <= _MAX_ERROR:
        results.fail(f"sum and layer norm: off by {error:.3g}")
    if failures := ops.kernel_failures(device):
        results.fail(f"kernels that do not work: {failures}")


def _calls(
    backbone: nn.Module, images: Tensor
) -> list[tuple[str, FoldedConvolution, tuple[Tensor, Tensor | None, str]]]:
    """Names, layers and arguments of all convolutions, without the memory of their results."""
    found: list[Any] = []

    def keep(name: str, layer: FoldedConvolution) -> None:
        def hook(_layer: nn.Module, args: Any, kwargs: Any) -> None:
            add = args[1] if len(args) > 1 else None
            # The sum may be computed in the memory of `add`.
            kept = None if add is None else add.clone()
            found.append((name, layer, (args[0], kept, kwargs.get("activation", "none"))))

        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))

    handles: list[Any] = []
    for name, layer in backbone.named_modules():
        if isinstance(layer, FoldedConvolution) and layer.product is None:
            keep(name, layer)
    with cuda_fusion.disabled():
        backbone(images)
    for handle in handles:
        handle.remove()
    return found


def _compare(layer: FoldedConvolution, given: tuple[Tensor, Tensor | None, str]) -> dict[str, Any]:
    x, add, activation = given

    def run() -> Tensor:
        other = None if add is None else add.clone()
        result: Tensor = layer(x, other, activation=activation)
        return result

    with cuda_fusion.disabled():
        expected = run().float()
        passes_us = _microseconds(run, x.device)
    if x.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.full((expected.numel(),), float("nan"), device=x.device)
    error = float((run().float() - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    return {
        "activation": activation,
        "adds": add is not None,
        "fused": layer.fused_on_gpu,
        "error": error,
        "fused_us": _microseconds(run, x.device),
        "passes_us": passes_us,
    }


def _microseconds(run: Any, device: torch.device) -> float:
    """The median of calls, with the copy of what is added."""
    taken = []
    for _ in range(_REPEATS if device.type == "cuda" else 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(1e6 * (time.perf_counter() - started))
    return round(statistics.median(taken), 1)


if __name__ == "__main__":
    sys.exit(main())
