"""Checks of a network on the GPU that it was loaded on, before it serves.

What depends on the GPU, its driver and cuDNN, and no test without a GPU can show: whether float16
has the range for these weights, and whether the fused convolutions compute what they should. Each
takes one small image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.network import cuda_fusion
from model.network.detector import LiteDETR
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
    """Compares the backbone's maps with and without fused products; disables them if they differ.

    Freed memory is filled with NaN first: a kernel that read its own result before writing it
    would show.
    """
    backbone = network.backbone[0]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, _SIDE, _SIDE, generator=generator).to(device)
    with torch.inference_mode():
        _fill_free_memory_with_nan(device)
        fused = backbone(images)
        with cuda_fusion.disabled():
            plain = backbone(images)
    worst = max(_relative_error(ours, exact) for ours, exact in zip(fused, plain, strict=True))
    if not worst <= _MAX_ERROR:  # also for NaN
        cuda_fusion.disable(f"their results differ by {worst:.2g} from those of separate passes")


def _relative_error(found: Tensor, exact: Tensor) -> float:
    found, exact = found.float(), exact.float()
    return float((found - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def _fill_free_memory_with_nan(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
    torch.full((_POISON_BYTES // 4,), float("nan"), device=device)
