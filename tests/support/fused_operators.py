"""The fused operators of CUDA GPUs by their formulas, on any device.

`FusedOperators` is a context in which torch's `cudnn_convolution_*` compute on the CPU. The sums
are float32 and are rounded once, as cuDNN does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model.network import cuda_fusion, onednn

Formula = Callable[..., Tensor]


def convolution_relu(x: Tensor, weight: Tensor, bias: Tensor, *geometry: Any) -> Tensor:
    """relu(conv(x) + b)."""
    return _rounded(_sums(x, weight, bias, *geometry), x)


def convolution_add_relu(
    x: Tensor, weight: Tensor, add: Tensor, alpha: float, bias: Tensor, *geometry: Any
) -> Tensor:
    """relu(conv(x) + alpha * add + b)."""
    return _rounded(_sums(x, weight, bias, *geometry) + alpha * add.float(), x)


def _sums(x: Tensor, weight: Tensor, bias: Tensor, *geometry: Any) -> Tensor:
    stride, padding, dilation, groups = geometry
    return F.conv2d(x.float(), weight.float(), bias.float(), stride, padding, dilation, groups)


def _rounded(sums: Tensor, x: Tensor) -> Tensor:
    return sums.relu_().to(x.dtype).contiguous(memory_format=torch.channels_last)


FORMULAS: dict[str, Formula] = {
    "cudnn_convolution_relu": convolution_relu,
    "cudnn_convolution_add_relu": convolution_add_relu,
}


class FusedOperators(TorchDispatchMode):
    """Replaces the operators of these names.

    Args:
        formulas: by name of the operator.
    """

    def __init__(self, formulas: dict[str, Formula]) -> None:
        super().__init__()
        self._formulas = formulas
        self.calls: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        name = func.overloadpacket.__name__
        if name not in self._formulas:
            return func(*args, **(kwargs or {}))
        self.calls.append(name)
        return self._formulas[name](*args, **(kwargs or {}))


@contextmanager
def as_on_a_gpu(**formulas: Formula) -> Iterator[FusedOperators]:
    """Layers choose what they choose for a GPU, and the fused operators work.

    Args:
        **formulas: other ones than `FORMULAS`, by name of the operator.
    """
    with (
        mock.patch.object(onednn, "is_available", lambda *_: False),
        mock.patch.object(cuda_fusion, "can_convolve", lambda *_: True),
        mock.patch.object(cuda_fusion, "can_multiply", lambda *_: True),
        FusedOperators({**FORMULAS, **formulas}) as operators,
    ):
        yield operators
