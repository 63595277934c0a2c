"""Layer normalisation of a sum on NVIDIA GPUs: csrc/add_norm.cuh, in place of two kernels of torch.

A variant (type, width) -> machine code (`nvrtc.py`) -> launched as in `cuda.py`. Inference only.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from model.ops import cuda
from model.ops.cuda import MAX_BATCH
from model.ops.cuda_call import ALIGNMENT_BYTES, CHANNELS_PER_LANE, LANES, array
from model.ops.nvrtc import TYPES

MAX_GROUPS = 4  # of eight channels, which a lane holds in registers
_FEW_GROUPS = 2
_MAX_ROWS = 2**30  # also of a residual's images, with the rows between them
_SEQUENCES = 3  # dimensions of [B, N, width]


@dataclass(frozen=True)
class NormVariant:
    """What the compiler gets as macros; one kernel per variant."""

    value_type: torch.dtype  # of all arrays
    width: int

    program = "add_norm.cu"
    entry = b"lite_detr_add_norm"
    loss = "slower"
    warps = 8  # of a block

    @property
    def blocks(self) -> int:
        """That must fit on a multiprocessor: 64 or 80 registers are left to a thread."""
        return 4 if self.groups <= _FEW_GROUPS else 3

    @property
    def lanes(self) -> int:
        """Of a row: the largest power of two that divides its groups of eight channels."""
        parts = self.width // CHANNELS_PER_LANE
        return min(parts & -parts, LANES)

    @property
    def groups(self) -> int:
        """Of eight channels, that a lane holds."""
        return self.width // CHANNELS_PER_LANE // self.lanes

    def definitions(self) -> tuple[str, ...]:
        """Compiler options that define the macros of the program."""
        macros = {
            "VALUE_TYPE": TYPES[self.value_type],
            "WIDTH": self.width,
            "WARPS": self.warps,
            "BLOCKS": self.blocks,
        }
        return tuple(f"-D{name}={value}" for name, value in macros.items())

    def __str__(self) -> str:
        """For logs: "sum and layer norm float16, 256 channels"."""
        types = str(self.value_type).removeprefix("torch.")
        return f"sum and layer norm {types}, {self.width} channels"


class NormCallStruct(ctypes.Structure):
    """Mirror of `NormCall` in csrc/call.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "residual", "weight", "bias", "output")),
        *((name, ctypes.c_int) for name in ("rows", "residual_stride")),
        ("eps", ctypes.c_float),
    )


class NormCall:
    """The struct that the kernel reads, and its launch; see `model.ops.cuda_call.Call`."""

    def __init__(  # noqa: PLR0913, PLR0917 - those of the operator
        self,
        variant: NormVariant,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        output: Tensor,
    ) -> None:
        dtype, width = variant.value_type, variant.width
        residual = residual.to(dtype)
        if not _has_whole_rows(residual):
            residual = array(residual, dtype)
        images, rows, stride = 1, x.numel() // width, 0
        if not residual.is_contiguous():
            images, rows, stride = len(x), x.shape[1], residual.stride(0) // width
        self.tensors = (
            array(x, dtype),
            residual,
            array(weight, dtype),
            array(bias, dtype),
            output,
        )
        pointers = (tensor.data_ptr() for tensor in self.tensors)
        self.struct = NormCallStruct(*pointers, rows, stride, eps)
        self.threads = variant.warps * LANES
        rows_of_block = LANES // variant.lanes * variant.warps
        self.grid = (-(-rows // rows_of_block), images)


def takes(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel supports rows of this type and width."""
    width = x.shape[-1]
    if x.dtype not in TYPES or weight.dtype not in TYPES or width % CHANNELS_PER_LANE != 0:
        return False
    if width == 0 or x.numel() // width > _MAX_ROWS:
        return False
    return NormVariant(x.dtype, width).groups <= MAX_GROUPS


def forward(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """layer_norm(x + residual), of the type and shape of `x`."""
    fits = residual.shape == x.shape and weight.shape == bias.shape == x.shape[-1:]
    if x.numel() == 0 or not fits or not takes(x, weight):
        return by_torch(x, residual, weight, bias, eps)
    output = torch.empty_like(x, memory_format=torch.contiguous_format)
    variant = NormVariant(x.dtype, x.shape[-1])
    given = (x, residual, weight, bias, eps, output)
    done = cuda.run(variant, x.device, lambda: NormCall(variant, *given))
    return output if done else by_torch(x, residual, weight, bias, eps)


def by_torch(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The same in two operations, which round the sum to the type of `x`."""
    total = (x + residual).to(x.dtype)
    return F.layer_norm(total, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)


def _has_whole_rows(residual: Tensor) -> bool:
    """Whether rows are adjacent, as in a part of the tokens of each image, and aligned."""
    width = residual.shape[-1]
    if residual.data_ptr() % ALIGNMENT_BYTES != 0:
        return False
    if residual.is_contiguous():
        return True
    if residual.dim() != _SEQUENCES or residual.stride()[1:] != (width, 1):
        return False
    return len(residual) <= MAX_BATCH and residual.stride(0) % width == 0
