"""Layers of the inference network: weights fixed, cast and laid out once for the device.

On a CPU they are oneDNN's, with packed weights and with the activation or the residual sum done
while the product is still in the cache; elsewhere they are torch's own. torch offers oneDNN's fused
products under private names only (it is pinned exactly); without them all works, a little slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["none", "relu", "relu6"]

_POINTWISE: dict[Activation, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
}
_OPERATORS = (
    "_linear_pointwise",
    "_reorder_linear_weight",
    "_convolution_pointwise_",
    "_is_mkldnn_bf16_supported",
)


def onednn_takes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's fused products can be used there; in bfloat16 not every processor has them.

    Args:
        device: that computes.
        dtype: float32 or bfloat16.
    """
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)
        and (dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
    )


class Product(nn.Module):
    """x W^T + b of one linear layer.

    Args:
        layer: whose weights are taken.
        dtype: of the weights and of what comes in and goes out.
        activation: done on the result.
    """

    def __init__(
        self, layer: nn.Linear, dtype: torch.dtype, activation: Activation = "none"
    ) -> None:
        super().__init__()
        weight, bias = layer.weight.detach(), layer.bias.detach()
        self.activation = activation
        self.bias = bias.to(dtype, copy=True)
        self.packed = onednn_takes(weight.device, dtype)
        self.weight: Any = weight.to(dtype, copy=True)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """[..., inputs] -> [..., outputs]; `add` is summed in before the activation."""
        product: Tensor
        if not self.packed or x.numel() == 0:
            product = F.linear(x, self._plain_weight(), self.bias)
            return _activated(product if add is None else product + add, self.activation)
        if add is None:
            product = torch.ops.mkldnn._linear_pointwise(
                x, self.weight, self.bias, *_POINTWISE[self.activation]
            )
            return product
        product = torch.ops.mkldnn._linear_pointwise.binary(x, add, self.weight, self.bias, "add")
        return _activated(product, self.activation)

    def _plain_weight(self) -> Tensor:
        weight: Tensor = self.weight.to_dense() if self.packed else self.weight
        return weight


class Products(nn.Module):
    """Several linear layers of one input: one batched product on a GPU.

    Each result is contiguous, as the attention kernels want it. On a CPU separate packed products
    are as fast as a merged one.

    Args:
        layers: of equal input width.
        dtype: of the weights and of what comes in and goes out.
    """

    def __init__(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        super().__init__()
        alike = len({layer.out_features for layer in layers}) == 1
        self.merged = alike and not onednn_takes(layers[0].weight.device, dtype)
        if self.merged:
            weights = torch.stack([layer.weight.detach().t() for layer in layers])
            biases = torch.stack([layer.bias.detach() for layer in layers])[:, None]
            self.register_buffer("weights", weights.to(dtype))
            self.register_buffer("biases", biases.to(dtype))
        else:
            self.products = nn.ModuleList(Product(layer, dtype) for layer in layers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[B, N, inputs] -> [B, N, outputs] of each layer."""
        if not self.merged:
            return tuple(product(x) for product in self.products)
        weights, biases = self.get_buffer("weights"), self.get_buffer("biases")
        rows = x.reshape(1, -1, x.shape[-1]).expand(len(weights), -1, -1)
        merged = torch.baddbmm(biases, rows, weights)
        return tuple(part.view(*x.shape[:-1], -1) for part in merged)


class Convolution(nn.Module):
    """A convolution with the normalisation behind it folded in.

    Its weights are not packed: oneDNN packs for one input size, and with another it was found to
    take a kernel ten times slower. A 1x1 convolution is a matrix product of the channels-last map,
    for which packing knows no such trap.

    Args:
        layer: whose weights are taken.
        dtype: of the weights and of what comes in and goes out.
        scale: [C'] factor of each output channel; None: 1.
        shift: [C'] summand of each output channel; None: the layer's own bias.
        activation: done on the result.
        residual: whether `forward` is given something to add.
    """

    def __init__(  # noqa: PLR0913 - what a folded layer is made of
        self,
        layer: nn.Conv2d,
        dtype: torch.dtype,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        activation: Activation = "none",
        residual: bool = False,
    ) -> None:
        super().__init__()
        weight, bias = layer.weight.detach(), layer.bias if shift is None else shift
        assert bias is not None, "a folded convolution has a bias"
        if scale is not None:
            weight = weight * scale[:, None, None, None]
        self.activation = activation
        self.where: tuple[Any, ...] = (list(layer.padding), list(layer.stride))
        self.where += (list(layer.dilation), layer.groups)
        self.fused = onednn_takes(weight.device, dtype)
        self.product: Product | None = None
        pointwise = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1
        if self.fused and pointwise and not residual:
            self.product = Product(as_linear(weight[:, :, 0, 0], bias), dtype, activation)
            return
        weight = weight.to(dtype, copy=True).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias.detach().to(dtype, copy=True))

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W'], channels last.

        Args:
            x: channels last.
            add: summed in before the activation; its memory becomes the result.
        """
        if self.product is not None:
            return self.product(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]
        weight, bias = self.get_buffer("weight"), self.get_buffer("bias")
        result: Tensor
        if not self.fused:
            padding, stride, dilation, groups = self.where
            result = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
            return _activated(result if add is None else result.add_(add), self.activation)
        unary, scalars, algorithm = _POINTWISE[self.activation]
        if add is None:
            result = torch.ops.mkldnn._convolution_pointwise(
                x, weight, bias, *self.where, unary, scalars, algorithm
            )
            return result
        behind = (None if unary == "none" else unary, scalars, algorithm)
        result = torch.ops.mkldnn._convolution_pointwise_.binary(
            add, x, weight, bias, *self.where, "add", 1.0, *behind
        )
        return result


class Norm(nn.Module):
    """Layer normalisation over the last axis; sums are float32 whatever comes in."""

    def __init__(self, layer: nn.LayerNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.eps = list(layer.normalized_shape), layer.eps
        self.register_buffer("weight", layer.weight.detach().to(dtype, copy=True))
        self.register_buffer("bias", layer.bias.detach().to(dtype, copy=True))

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]."""
        weight, bias = self.get_buffer("weight"), self.get_buffer("bias")
        return F.layer_norm(x, self.shape, weight, bias, self.eps)


def as_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer of these weights, without copying them."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


def _activated(x: Tensor, activation: Activation) -> Tensor:
    if activation == "relu":
        return F.relu_(x)
    return F.relu6(x, inplace=True) if activation == "relu6" else x
