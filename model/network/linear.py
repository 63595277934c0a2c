"""Linear layers, and what is made of them: feed-forward networks and heads.

In training a layer is torch's own. Its inference form holds the weights in the precision of the
network, packed for oneDNN on a CPU, fused with bias and ReLU by cuBLASLt on a GPU.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network import cuda_fusion, onednn
from model.network.onednn import Activation
from model.ops.add_norm import add_layer_norm
from model.ops.packing import Affine


class Linear(nn.Linear):
    """activation(x W^T + b + add)."""

    def forward(
        self, x: Tensor, add: Tensor | None = None, *, activation: Activation = "none"
    ) -> Tensor:
        """[..., inputs] -> [..., outputs]; `add` has the shape of the result."""
        return add_and_activate(F.linear(x, self.weight, self.bias), add, activation)

    def inference_form(self, dtype: torch.dtype) -> PackedLinear:
        """See `model.network.inference`."""
        return PackedLinear(self.weight, self.bias, dtype)


class PackedLinear(nn.Module):
    """The inference form of `Linear`.

    Args:
        weight: [outputs, inputs]; copied.
        bias: [outputs]; copied.
        dtype: of the weights, the input and the result.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.bias = bias.detach().to(dtype, copy=True)
        self.weight = weight.detach().to(dtype, copy=True)
        self.packed = onednn.is_available(weight.device, dtype)
        self.fused_on_gpu = cuda_fusion.can_multiply(weight.device, dtype)
        if self.packed:
            self.weight = onednn.pack_linear(self.weight)

    def forward(
        self, x: Tensor, add: Tensor | None = None, *, activation: Activation = "none"
    ) -> Tensor:
        """See `Linear.forward`."""
        if self.fused_on_gpu and cuda_fusion.is_enabled("_addmm_activation"):
            if add is None:
                return cuda_fusion.linear(x, self.weight, self.bias, activation)
            product = cuda_fusion.linear(x, self.weight, self.bias).add_(add)
            return add_and_activate(product, None, activation)
        if not self.packed or x.numel() == 0:
            weight = self.weight.to_dense() if self.packed else self.weight
            return add_and_activate(F.linear(x, weight, self.bias), add, activation)
        if add is None:
            return onednn.linear(x, self.weight, self.bias, activation)
        return add_and_activate(onednn.linear_add(x, self.weight, self.bias, add), None, activation)


def affine_of(layer: nn.Module) -> Affine:
    """The parameters of a linear layer, in any form, or of a norm."""
    weight = cast(Tensor, layer.weight)
    return Affine(weight.to_dense() if weight.is_mkldnn else weight, cast(Tensor, layer.bias))


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, num_layers: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (num_layers - 1), outputs]
        self.layers = nn.ModuleList(Linear(before, after) for before, after in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            x = layer(x, activation="relu" if index < last else "none")
        return x


def feed_forward(x: Tensor, widen: nn.Module, narrow: nn.Module, norm: nn.Module) -> Tensor:
    """norm(x + narrow(relu(widen(x)))): the transformer's FFN, [B, N, d] -> [B, N, d]."""
    return project_and_norm(widen(x, activation="relu"), narrow, x, norm)


def project_and_norm(x: Tensor, layer: nn.Module, residual: Tensor, norm: nn.Module) -> Tensor:
    """norm(layer(x) + residual): [B, N, inputs] -> [B, N, d].

    In the inference form on a GPU sum and normalisation are one kernel.
    """
    fused = isinstance(layer, PackedLinear) and layer.fused_on_gpu and cuda_fusion.is_enabled()
    if fused and not torch.is_grad_enabled():
        assert isinstance(norm, nn.LayerNorm)
        return add_layer_norm(layer(x), residual, norm)
    return norm(layer(x, residual))  # type: ignore[no-any-return]


def add_and_activate(x: Tensor, add: Tensor | None, activation: Activation) -> Tensor:
    """activation(x + add); `x` may be overwritten."""
    if add is not None:
        x = x + add
    if activation == "relu":
        # The result of a layer may be a view, whose gradient is copied if it is changed in place.
        return F.relu(x) if x.requires_grad else F.relu_(x)
    if activation == "gelu":
        return F.gelu(x)
    return F.relu6(x, inplace=True) if activation == "relu6" else x
