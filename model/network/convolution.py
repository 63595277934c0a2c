"""Convolutions with frozen batch normalisation.

In training the normalisation is folded into the convolution at every call, so that gradients reach
both. In the inference form it is folded once (`fold`), and 3x3 convolutions in float32 on a CPU are
done by Winograd's algorithm.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network import cuda_fusion, onednn
from model.network.linear import PackedLinear, add_and_activate
from model.network.onednn import Activation
from model.ops import winograd
from model.ops.bottlenecks import Folded

# Winograd's weights are four times as large: with more channels, reading them costs too much.
_MAX_WINOGRAD_CHANNELS = 256
# Tiles x inputs x outputs of a convolution; with fewer, the many small products gain nothing.
_MIN_WINOGRAD_WORK = 1 << 21


class FrozenBatchNorm(nn.Module):
    """Parameters of a batch normalisation whose statistics never change; see `conv_bn`.

    Args:
        channels: of the map.
        eps: added to the variance inside the root.
        trainable: weight and bias are parameters (backbones fine-tuned here); otherwise they are
            buffers, as in DETR.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, *, trainable: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.weight: Tensor
        self.bias: Tensor
        if trainable:
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
        else:
            self.register_buffer("weight", torch.ones(channels))
            self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))


def conv_bn(
    x: Tensor,
    conv: nn.Module,
    norm: nn.Module | None,
    activation: Activation = "none",
    add: Tensor | None = None,
) -> Tensor:
    """activation(norm(conv(x)) + add), as one convolution.

    Args:
        x: [B, C, H, W].
        conv: an `nn.Conv2d` without bias, or what `fold` made of it.
        norm: the frozen normalisation of its output; None: `conv` is folded.
        activation: applied to the result.
        add: [B, C', H', W']; with a folded convolution its memory becomes the result.

    Returns:
        [B, C', H', W'].
    """
    if norm is None:
        return conv(x, add, activation=activation)  # type: ignore[no-any-return]
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm)
    weight, shift = fold_with_gradients(conv, norm)
    assert isinstance(conv.padding, tuple)

    def convolve(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)

    result = onednn.convolve_narrow_map(
        convolve, x, conv.kernel_size[1], conv.stride[1], conv.padding[1]
    )
    return add_and_activate(result, add, activation)


def fold(
    conv: nn.Module, norm: nn.Module | None, dtype: torch.dtype, *, adds: bool = False
) -> nn.Module:
    """The inference form of a convolution and its normalisation, folded in float64.

    Args:
        conv: an `nn.Conv2d` without bias.
        norm: the frozen normalisation of its output.
        dtype: of the weights, the input and the result.
        adds: whether it is called with something to add.
    """
    assert isinstance(conv, nn.Conv2d)
    weight, bias = fold_weights(conv, norm)
    replacement = FoldedConvolution(conv, weight, bias, dtype, adds=adds)
    if not adds and WinogradConvolution.fits(conv, dtype):
        return WinogradConvolution(replacement)
    return replacement


def fold_with_gradients(conv: nn.Module, norm: nn.Module | None) -> Folded:
    """As `fold_weights` in the precision of the weights; gradients reach both modules."""
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm)
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return Folded(conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale)


def fold_weights(conv: nn.Module, norm: nn.Module | None) -> Folded:
    """A convolution with the normalisation of its output, folded in float64.

    Returns:
        Both in float64.
    """
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm)
    weight, bias, mean, variance = (
        getattr(norm, name).detach().double()
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / (variance + norm.eps).sqrt()
    return Folded(conv.weight.detach() * scale[:, None, None, None], bias - mean * scale)


def move_bias(source: nn.Module, target: nn.Module) -> None:
    """Moves the bias of a convolution to another one on a GPU whose result is added to its own.

    cuDNN adds the bias of a convolution without activation in a pass of its own.
    """
    assert isinstance(source, FoldedConvolution) and isinstance(target, FoldedConvolution)
    if source.fused_on_gpu and not source.pointwise:
        target.bias = (target.bias.float() + source.bias.float()).to(target.bias.dtype)
        source.bias = torch.zeros_like(source.bias)
        source.has_bias = False


class FoldedConvolution(nn.Module):
    """A convolution for inference: activation(conv(x) + bias + add).

    Its weights are not packed: oneDNN packs for one input size, and was found to take a kernel ten
    times slower with another size. A 1x1 convolution is a matrix product of the channels-last map,
    whose packing has no such drawback.

    Args:
        conv: gives stride, padding, dilation and groups.
        weight: [C', C / groups, h, w].
        bias: [C'].
        dtype: of the weights, the input and the result.
        adds: whether `forward` is called with something to add.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, conv: nn.Conv2d, weight: Tensor, bias: Tensor, dtype: torch.dtype, *, adds: bool
    ) -> None:
        super().__init__()
        self.geometry: tuple[Any, ...] = (list(conv.padding), list(conv.stride))
        self.geometry += (list(conv.dilation), conv.groups)
        self.fused = onednn.is_available(weight.device, dtype)
        # Not depthwise ones: whether cuDNN has them fused, and as fast, was not measured on a GPU.
        self.fused_on_gpu = conv.groups == 1 and cuda_fusion.can_convolve(weight.device, dtype)
        self.has_bias = True  # False: it is zero; see `move_bias`
        self.product: PackedLinear | None = None
        pointwise = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1
        self.pointwise = pointwise and conv.padding == (0, 0)
        if self.fused and pointwise and not adds:
            self.product = PackedLinear(weight[:, :, 0, 0], bias, dtype)
            return
        weight = weight.detach().to(dtype, copy=True)
        weight = weight.contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias.detach().to(dtype, copy=True))

    def forward(
        self, x: Tensor, add: Tensor | None = None, *, activation: Activation = "none"
    ) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W'], channels last; the result may overwrite `add`."""
        if self.product is not None:
            product: Tensor = self.product(x.permute(0, 2, 3, 1), activation=activation)
            return product.permute(0, 3, 1, 2)
        if self.fused_on_gpu and cuda_fusion.is_enabled():
            return self._forward_on_gpu(x, add, activation)
        if not self.fused:
            return self._forward_in_passes(x, add, activation)
        if add is None:
            padding, stride = self.geometry[:2]
            return onednn.convolve_narrow_map(
                lambda x: onednn.convolve(x, self.weight, self.bias, self.geometry, activation),
                *(x, self.weight.shape[3], stride[1], padding[1]),
            )
        return onednn.convolve_add_(add, x, self.weight, self.bias, self.geometry, activation)

    def _forward_on_gpu(self, x: Tensor, add: Tensor | None, activation: Activation) -> Tensor:
        """As `forward`, in as few passes over the result as cuDNN and cuBLASLt allow."""
        by_rows = self.pointwise and (add is None or activation == "none")
        if by_rows and cuda_fusion.is_enabled("_addmm_activation"):
            weight = self.weight.flatten(1)
            product = cuda_fusion.linear(x.permute(0, 2, 3, 1), weight, self.bias, activation)
            result = product.permute(0, 3, 1, 2)
            return result if add is None else result.add_(add)
        fits = activation == "relu" or (activation == "relu6" and add is None)
        if fits and cuda_fusion.is_enabled(cuda_fusion.operator_for(add)):
            try:
                return cuda_fusion.convolve(
                    x, self.weight, self.bias, add, self.geometry, activation
                )
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # cuDNN does not have every size
                self._stop_fusing(error)
        return self._forward_in_passes(x, add, activation)

    def _forward_in_passes(self, x: Tensor, add: Tensor | None, activation: Activation) -> Tensor:
        """As `forward`; bias, sum and activation may be passes of their own."""
        padding, stride, dilation, groups = self.geometry
        bias = self.bias if self.has_bias else None
        result = F.conv2d(x, self.weight, bias, stride, padding, dilation, groups)
        if add is not None:
            result.add_(add)
        return add_and_activate(result, None, activation)

    def _stop_fusing(self, error: RuntimeError) -> None:
        self.fused_on_gpu = False
        warnings.warn(
            f"a convolution {tuple(self.weight.shape)} runs without a fused epilogue: {error}",
            RuntimeWarning,
            stacklevel=4,
        )


class WinogradConvolution(nn.Module):
    """A 3x3 convolution with a quarter of the multiplications; see `model.ops.winograd`.

    Only for float32 on a CPU: narrower numbers would lose too much in the sums of a tile. Small
    maps take the plain convolution.

    Args:
        plain: the convolution whose place this one takes; nothing is added to its result.
    """

    def __init__(self, plain: FoldedConvolution) -> None:
        super().__init__()
        self.plain = plain
        outputs, inputs = plain.weight.shape[:2]
        self.work_per_tile = outputs * inputs
        zeros = torch.zeros(outputs)
        self.products = nn.ModuleList(
            PackedLinear(matrix.float(), zeros, torch.float32)
            for matrix in winograd.kernels_at_points(plain.weight)
        )

    @staticmethod
    def fits(conv: nn.Conv2d, dtype: torch.dtype) -> bool:
        """Whether it can take the place of that convolution."""
        channels = (conv.in_channels, conv.out_channels)
        kind = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
        return (
            kind == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
            and dtype == torch.float32
            and all(c <= _MAX_WINOGRAD_CHANNELS and c % winograd.CHANNELS == 0 for c in channels)
            and onednn.is_available(conv.weight.device, dtype)
            and winograd.available()
        )

    def forward(
        self, x: Tensor, add: Tensor | None = None, *, activation: Activation = "none"
    ) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W], both channels last; `add` is None."""
        assert add is None, "a convolution with a residual is not replaced"
        batch, _, height, width = x.shape
        work = winograd.count_tiles(height, width) * self.work_per_tile
        if work < _MIN_WINOGRAD_WORK or activation == "relu6":
            return self.plain(x, activation=activation)  # type: ignore[no-any-return]
        planes = winograd.spread(x.permute(0, 2, 3, 1))
        multiplied = [product(plane) for product, plane in zip(self.products, planes, strict=True)]
        result = winograd.gather(
            multiplied, self.plain.bias, (batch, height, width), relu=activation == "relu"
        )
        return result.permute(0, 3, 1, 2)
