"""Layer normalisation of a sum: one kernel on NVIDIA GPUs, in inference.

`add_layer_norm` is the torch operator `lite_detr::add_layer_norm`, so that `torch.compile` and
`torch.export` support it; on a CPU it is two operations of torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.ops import cuda_norm

_NAME = "lite_detr::add_layer_norm"
_LIBRARY = torch.library.Library("lite_detr", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps) -> Tensor"
)


def add_layer_norm(x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
    """norm(x + residual), of the type of `x`; cannot be differentiated.

    The sum is float32 in every type, and so are mean and variance.

    Args:
        x: [B, N, d].
        residual: [B, N, d]; a part of the tokens of each image needs no copy.
        norm: of the last dimension, with weight and bias.
    """
    output: Tensor = torch.ops.lite_detr.add_layer_norm(
        x, residual, norm.weight, norm.bias, norm.eps
    )
    return output


def _on_gpu(*given: Any) -> Tensor:
    return cuda_norm.forward(*given)  # looked up at each call: tests replace it


def _fake(x: Tensor, *_rest: object) -> Tensor:
    return x.new_empty(x.shape)


def _refuse(_ctx: Any, *_grads: Tensor) -> None:
    raise RuntimeError("the compiled sum and layer norm cannot be differentiated")


_LIBRARY.impl("add_layer_norm", cuda_norm.by_torch, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("add_layer_norm", _on_gpu, "CUDA")  # type: ignore[no-untyped-call]
torch.library.register_fake(_NAME, _fake, lib=_LIBRARY)
torch.library.register_autograd(_NAME, _refuse, lib=_LIBRARY)
