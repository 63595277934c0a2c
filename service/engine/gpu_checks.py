"""Checks of a network on the GPU that it was loaded on, before it serves.

What depends on the GPU, its driver and cuDNN, and no test without a GPU can show: whether float16
has the range for these weights, and whether the fused convolutions and the project's own kernels
compute what they should. Each takes one small image.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from torch import Tensor

from model.network import cuda_fusion
from model.network.cuda_fusion import Operator
from model.network.detector import LiteDETR
from model.ops import cuda
from model.predictor import Predictor

_SIDE = 256  # pixels of the image
_MAX_ERROR = 0.02  # root mean square of the difference, relative to that of the values
_POISON_BYTES = 256 << 20  # more than the maps of that image take


def gives_finite_output(predictor: Predictor) -> bool:
    """Whether the network's output for an image of noise is finite, in its number type."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, _SIDE, _SIDE, 3), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([[_SIDE, _SIDE]], dtype=torch.int32)
    rows = predictor.detect(pixels.to(predictor.device), sizes.to(predictor.device))
    return bool(rows.isfinite().all())


def check_fused_products(network: LiteDETR, device: torch.device) -> None:
    """Compares the backbone's maps with and without fused products; disables what differs.

    If the maps differ, each operator is compared alone, so that the others stay in use. Freed
    memory is filled with NaN first: a kernel that read its own result before writing it would show.
    """
    backbone = network.backbone[0]
    images = _noise(device)
    with torch.inference_mode():
        with cuda_fusion.disabled():
            plain = backbone(images)

        def error_without(*left_out: Operator) -> float | None:
            _fill_free_memory_with_nan(device)
            with cuda_fusion.disabled(*left_out) if left_out else nullcontext():
                return _first_large_error(zip(backbone(images), plain, strict=True))

        error = error_without()
        if error is None:
            return
        checked = sorted(cuda_fusion.enabled())
        errors = {
            one: error_without(*(other for other in checked if other != one)) for one in checked
        }
        wrong = {one: alone for one, alone in errors.items() if alone is not None}
    for operator, largest in (wrong or dict.fromkeys(checked, error)).items():
        cuda_fusion.disable(
            operator, f"its results differ by {largest:.2g} from those of separate passes"
        )


def check_kernels(network: LiteDETR, device: torch.device) -> None:
    """Compares encoder and decoder with and without the kernels; gives these up if they differ.

    The decoder gets the same queries both times: rounding could select others.
    """
    images = _noise(device)
    mask = torch.zeros(1, _SIDE, _SIDE, dtype=torch.bool, device=device)
    with torch.inference_mode():
        _fill_free_memory_with_nan(device)
        memory, geometry = network.encode(images, mask)
        proposals = network.transformer.propose(memory, geometry)
        found = network.decode(memory, geometry, proposals)
        with cuda.disabled():
            exact_memory, _ = network.encode(images, mask)
            exact = network.decode(memory, geometry, proposals)
    error = _first_large_error(
        [
            (memory, exact_memory),
            (found.pred_logits, exact.pred_logits),
            (found.pred_boxes, exact.pred_boxes),
        ]
    )
    if error is not None:
        cuda.give_up(device, f"its results differ by {error:.2g} from those of plain PyTorch")


def _noise(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, _SIDE, _SIDE, generator=generator).to(device)


def _first_large_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> float | None:
    """The first error that is too large or NaN, of pairs of found and exact values."""
    for found, exact in pairs:
        difference = found.float() - exact.float()
        error = float(difference.square().mean().sqrt() / exact.float().square().mean().sqrt())
        if not error <= _MAX_ERROR:
            return error
    return None


def _fill_free_memory_with_nan(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    torch.full((_POISON_BYTES // 4,), float("nan"), device=device)
