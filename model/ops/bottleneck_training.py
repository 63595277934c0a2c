"""Inverted bottlenecks in training on the CPU: a block and its gradients in few passes.

Layer by layer, most of the time goes to passes over the expanded maps, six times as large as the
others: ReLU6 and its gradient, changes of the memory format, and a depthwise convolution whose
gradients are slow. Here the 1x1 convolutions are matrix products of channels-last maps, and the
depthwise convolution is compiled together with the ReLU6 before and after it
(`csrc/depthwise_training.cpp`).
"""

# The arguments of the autograd function are the tensors that have gradients.
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.ops import cpu, implementation_name
from model.ops.bottlenecks import Bottleneck


class _Arguments(ctypes.Structure):
    """Mirror of `DepthwiseTraining` in csrc/depthwise_training.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input", "weight", "bias", "output")),
        *((name, ctypes.c_void_p) for name in ("grad_output", "grad_input")),
        *((name, ctypes.c_void_p) for name in ("grad_weight", "grad_bias", "grad_input_sum")),
        ("bfloat16", ctypes.c_int64),
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels")),
        *((name, ctypes.c_int64) for name in ("kernel", "stride", "input_relu6", "threads")),
    )


@dataclass(frozen=True)
class DepthwiseGradients:
    """Gradients of a depthwise convolution; `input` is None where it is not requested."""

    input: Tensor | None
    input_sum: Tensor | None  # float32 [C]: of `input` over all pixels
    weight: Tensor  # float32
    bias: Tensor  # float32


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, stride: int, *, input_relu6: bool) -> Tensor:
    """relu6(convolution of each channel + bias), padded by half of the kernel.

    Args:
        x: float32 or bfloat16 [B, H, W, C], contiguous; C is a multiple of 16.
        weight: float32 [k, k, C], k 3 or 5.
        bias: float32 [C].
        stride: 1 or 2.
        input_relu6: relu6(x) takes the place of `x`.

    Returns:
        [B, ceil(H / stride), ceil(W / stride), C] of the type of `x`.
    """
    batch, height, width, channels = x.shape
    output = x.new_empty(batch, -(-height // stride), -(-width // stride), channels)
    weight, bias = weight.contiguous(), bias.contiguous()
    arguments = _arguments(x, weight, output, stride, input_relu6)
    arguments.bias = bias.data_ptr()
    cpu.library().lite_detr_depthwise_forward(ctypes.byref(arguments))
    return output


def depthwise_gradients(
    grad_output: Tensor,
    x: Tensor,
    weight: Tensor,
    output: Tensor,
    stride: int,
    *,
    of_input: bool,
    input_relu6: bool,
) -> DepthwiseGradients:
    """Gradients of `depthwise`; deterministic for any number of threads.

    Args:
        grad_output: gradient of `output`, of its type and shape.
        x: see `depthwise`.
        weight: see `depthwise`.
        output: what `depthwise` returned.
        stride: see `depthwise`.
        of_input: whether the gradient of `x` is computed.
        input_relu6: see `depthwise`.
    """
    kernel, _, channels = weight.shape
    batch = x.shape[0]
    weight, grad_output = weight.contiguous(), grad_output.contiguous()
    grad_input = torch.empty_like(x) if of_input else None
    grad_weight = weight.new_empty(batch, kernel, kernel, channels)
    grad_bias, input_sum = weight.new_empty(2, batch, channels)
    arguments = _arguments(x, weight, output, stride, input_relu6)
    arguments.grad_output = grad_output.data_ptr()
    arguments.grad_weight = grad_weight.data_ptr()
    arguments.grad_bias = grad_bias.data_ptr()
    if grad_input is not None:
        arguments.grad_input = grad_input.data_ptr()
        arguments.grad_input_sum = input_sum.data_ptr()
    cpu.library().lite_detr_depthwise_backward(ctypes.byref(arguments))
    total = None if grad_input is None else input_sum.sum(0)
    return DepthwiseGradients(grad_input, total, grad_weight.sum(0), grad_bias.sum(0))


def _arguments(
    x: Tensor, weight: Tensor, output: Tensor, stride: int, input_relu6: bool
) -> _Arguments:
    batch, height, width, channels = x.shape
    return _Arguments(
        input=x.data_ptr(),
        weight=weight.data_ptr(),
        output=output.data_ptr(),
        bfloat16=x.dtype == torch.bfloat16,
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        kernel=weight.shape[0],
        stride=stride,
        input_relu6=input_relu6,
        threads=torch.get_num_threads(),
    )


def takes(x: Tensor) -> bool:
    """Whether a block with this input is computed by `run`: in training, where kernels are."""
    if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") not in cpu.DTYPES:
        return False
    if x.dtype not in cpu.DTYPES or x.numel() == 0:
        return False
    return implementation_name("cpu") == "cpu"


def run(x: Tensor, block: Bottleneck) -> Tensor:
    """A block with gradients of its input and of its folded weights.

    Under autocast to bfloat16, maps and products have that type; sums are float32.

    Args:
        x: [B, C, H, W], fastest with channels last.
        block: which `fits`; its tensors float32.

    Returns:
        [B, C', H', W'], channels last.
    """
    expand = (None, None) if block.expand is None else block.expand
    result = _Run.apply(  # type: ignore[no-untyped-call]
        x.permute(0, 2, 3, 1),
        *(expand[0], expand[1], *block.depthwise, *block.project),
        block.stride,
        block.residual,
    )
    return cast(Tensor, result).permute(0, 3, 1, 2)


class _Run(torch.autograd.Function):
    """`run` on [B, H, W, C]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        expand: Tensor | None,
        expand_bias: Tensor | None,
        filters: Tensor,
        filter_bias: Tensor,
        project: Tensor,
        project_bias: Tensor,
        stride: int,
        residual: bool,
    ) -> Tensor:
        """[B, H, W, C] -> [B, H', W', C']."""
        ctx.input_dtype = x.dtype
        dtype = x.dtype
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        x = x.to(dtype).contiguous()
        expanded = x
        if expand is not None and expand_bias is not None:
            expand = expand.flatten(1).to(dtype)
            expanded = F.linear(x, expand, expand_bias.to(dtype))
        filters = filters[:, 0].permute(1, 2, 0).contiguous()
        filtered = depthwise(expanded, filters, filter_bias, stride, input_relu6=expand is not None)
        project = project.flatten(1).to(dtype)
        result = F.linear(filtered, project, project_bias.to(dtype))
        if residual:
            result += x
        ctx.save_for_backward(x, expand, expanded, filters, filtered, project)
        ctx.stride, ctx.residual = stride, residual
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors of `forward`."""
        x, expand, expanded, filters, filtered, project = ctx.saved_tensors
        grad = grad.to(x.dtype).contiguous()
        rows = grad.flatten(0, 2)
        grads = depthwise_gradients(
            grad @ project,
            expanded,
            filters,
            filtered,
            ctx.stride,
            of_input=expand is not None or ctx.needs_input_grad[0],
            input_relu6=expand is not None,
        )
        of_expand = of_expand_bias = None
        of_x = grads.input
        if expand is not None and of_x is not None:
            of_expand = _product_of_rows(of_x.flatten(0, 2), x.flatten(0, 2))
            of_expand_bias = grads.input_sum
            of_x = of_x @ expand if ctx.needs_input_grad[0] else None
        if ctx.residual and of_x is not None:
            of_x += grad
        return (
            None if of_x is None else of_x.to(ctx.input_dtype),
            *(of_expand, of_expand_bias),
            grads.weight.permute(2, 0, 1)[:, None],
            grads.bias,
            _product_of_rows(rows, filtered.flatten(0, 2)),
            rows.sum(0, dtype=torch.float32),
            *(None, None),
        )


def _product_of_rows(grad: Tensor, x: Tensor) -> Tensor:
    """[N, a] and [N, b] -> the gradient of 1x1 weights, float32 [a, b, 1, 1]."""
    return (grad.t() @ x).float()[:, :, None, None]
