"""The backward pass of the warp kernels on NVIDIA GPUs.

The kernel computes the forward pass again, so training keeps only its inputs: plain PyTorch keeps
every sample. Where the kernel does not work, plain PyTorch computes the gradients.
"""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from model.ops import cuda
from model.ops.cpu import InputGradients, Inputs
from model.ops.cuda_call import BackwardCall, sum_scale, variant_of
from model.ops.nvrtc import Variant


def backward(inputs: Inputs, grad_output: Tensor, *, of_reference_points: bool) -> InputGradients:
    """Gradients of all inputs from that of the output, [B, Q, M*D].

    Sums over queries are float32, added in any order; with
    `torch.use_deterministic_algorithms(True)` they are integers, with the same bits in every run.

    Args:
        inputs: those of the forward pass.
        grad_output: gradient of its output.
        of_reference_points: whether to compute their gradient, a sum over heads.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    variant = variant_of(inputs, backward=True, deterministic=deterministic)
    grads = _empty_gradients(inputs, variant, of_reference_points)
    if grad_output.numel() > 0:
        scale = sum_scale(inputs, grad_output) if deterministic else None
        written = grads
        done = cuda.run(
            variant,
            inputs.value.device,
            lambda: BackwardCall(inputs, variant, grad_output, written, scale),
        )
        if not done:
            return _backward_by_reference(inputs, grad_output, of_reference_points)
        if scale is not None:
            value, key = (_unscaled(sums, scale) for sums in (grads.value, grads.key))
            assert value is not None
            grads = replace(grads, value=value, key=key)
    if grads.reference_points is not None:
        grads = replace(grads, reference_points=grads.reference_points.sum(1))
    return _of_types(grads, inputs)


def _empty_gradients(inputs: Inputs, variant: Variant, of_reference_points: bool) -> InputGradients:
    """What the kernel writes; sums over queries begin with 0."""
    batch, queries, heads, *_ = inputs.sampling_offsets.shape
    new = inputs.value.new_zeros if queries == 0 else inputs.value.new_empty
    sums = torch.int64 if variant.deterministic else torch.float32

    def zeros(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.new_zeros(tensor.shape, dtype=sums)

    value = zeros(inputs.value)
    assert value is not None
    shares = None
    if of_reference_points:
        size = (batch, heads, *inputs.reference_points.shape[1:])
        shares = new(size, dtype=torch.float32)
    return InputGradients(
        value,
        shares,
        new(inputs.sampling_offsets.shape, dtype=torch.float32),
        None if inputs.query is None else new(inputs.query.shape, dtype=variant.value_type),
        zeros(inputs.key),
        None if inputs.logits is None else new(inputs.logits.shape, dtype=torch.float32),
    )


def _unscaled(sums: Tensor | None, scale: Tensor) -> Tensor | None:
    return None if sums is None else sums.double().div_(scale.double())


def _of_types(grads: InputGradients, inputs: Inputs) -> InputGradients:
    """The gradients in the types of their inputs."""
    changed = {}
    for field in fields(InputGradients):
        gradient, given = getattr(grads, field.name), getattr(inputs, field.name)
        changed[field.name] = None if gradient is None else gradient.to(given.dtype)
    return InputGradients(**changed)  # type: ignore[arg-type]


def _backward_by_reference(
    inputs: Inputs, grad_output: Tensor, of_reference_points: bool
) -> InputGradients:
    names = [field.name for field in fields(InputGradients)]
    if not of_reference_points:
        names.remove("reference_points")
    leaves = {
        name: tensor.detach().requires_grad_()
        for name in names
        if (tensor := getattr(inputs, name)) is not None
    }
    with torch.enable_grad():
        output = cuda.by_reference(replace(inputs, **leaves))
    computed = torch.autograd.grad(output, list(leaves.values()), grad_output)
    grads: dict[str, Tensor | None] = dict.fromkeys(field.name for field in fields(InputGradients))
    grads.update(zip(leaves, computed, strict=True))
    return InputGradients(**grads)  # type: ignore[arg-type]
