"""The compiled kernels as torch operators `lite_detr::*`: autograd, fake tensors, export.

Defined through `torch.library.Library` and not `custom_op`, which imports the whole compiler stack
at its first call and would delay the start of a service by seconds.
Absent gradients are returned as empty tensors, since operators cannot return optional ones.
"""

# The number of arguments is that of the operators' schemas.
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from model.ops import cpu, cuda, cuda_backward

_LIBRARY = torch.library.Library("lite_detr", "DEF")  # type: ignore[no-untyped-call]

for _schema in (
    "ms_deform_attn(Tensor value, int[] spatial_shapes, Tensor reference_points, "
    "Tensor sampling_offsets, Tensor attention_logits, Tensor? valid_ratios=None) -> Tensor",
    "ms_deform_attn_backward(Tensor grad_output, Tensor value, int[] spatial_shapes, "
    "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, "
    "bool of_reference_points) -> (Tensor, Tensor, Tensor, Tensor)",
    "key_aware_deform_attn(Tensor query, Tensor? key, Tensor value, int[] spatial_shapes, "
    "Tensor reference_points, Tensor sampling_offsets, Tensor? valid_ratios=None) -> Tensor",
    "key_aware_deform_attn_backward(Tensor grad_output, Tensor query, Tensor? key, Tensor value, "
    "int[] spatial_shapes, Tensor reference_points, Tensor sampling_offsets, "
    "bool of_reference_points) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
):
    _LIBRARY.define(_schema)  # type: ignore[no-untyped-call]


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    valid_ratios: Tensor | None = None,
) -> Tensor:
    """Plain deformable attention by operator; see `model.ops.ms_deform_attn`."""
    located = (_flat(spatial_shapes), reference_points, sampling_offsets)
    output: Tensor = torch.ops.lite_detr.ms_deform_attn(
        value, *located, attention_logits, valid_ratios
    )
    return output


def key_aware_deform_attn(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    valid_ratios: Tensor | None = None,
) -> Tensor:
    """Key-aware deformable attention by operator; see `model.ops.key_aware_deform_attn`."""
    located = (_flat(spatial_shapes), reference_points, sampling_offsets)
    output: Tensor = torch.ops.lite_detr.key_aware_deform_attn(
        query, key, value, *located, valid_ratios
    )
    return output


def _flat(spatial_shapes: Sequence[tuple[int, int]]) -> list[int]:
    return [side for shape in spatial_shapes for side in shape]


def _or_empty(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if tensor is None else tensor


def _plain(*arguments: Any) -> Tensor:
    return cpu.forward(_plain_inputs(*arguments))


def _plain_on_gpu(*arguments: Any) -> Tensor:
    return cuda.forward(_plain_inputs(*arguments))


def _plain_inputs(
    value: Tensor,
    spatial_shapes: list[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    valid_ratios: Tensor | None = None,
) -> cpu.Inputs:
    located = (reference_points, sampling_offsets, spatial_shapes)
    return cpu.Inputs(value, *located, logits=attention_logits, valid_ratios=valid_ratios)


Backward = Callable[..., cpu.InputGradients]  # of cpu.py or cuda_backward.py


def _plain_backward(
    backward: Backward,
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: list[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    of_reference_points: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = _plain_inputs(
        value, spatial_shapes, reference_points, sampling_offsets, attention_logits
    )
    grads = backward(inputs, grad_output, of_reference_points=of_reference_points)
    assert grads.logits is not None
    references = _or_empty(grads.reference_points, value)
    return grads.value, references, grads.sampling_offsets, grads.logits


def _key_aware(*arguments: Any) -> Tensor:
    return cpu.forward(_key_aware_inputs(*arguments))


def _key_aware_on_gpu(*arguments: Any) -> Tensor:
    return cuda.forward(_key_aware_inputs(*arguments))


def _key_aware_inputs(
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    spatial_shapes: list[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    valid_ratios: Tensor | None = None,
) -> cpu.Inputs:
    located = (reference_points, sampling_offsets, spatial_shapes)
    return cpu.Inputs(value, *located, query=query, key=key, valid_ratios=valid_ratios)


def _key_aware_backward(
    backward: Backward,
    grad_output: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    spatial_shapes: list[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    of_reference_points: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = _key_aware_inputs(
        query, key, value, spatial_shapes, reference_points, sampling_offsets
    )
    grads = backward(inputs, grad_output, of_reference_points=of_reference_points)
    assert grads.query is not None
    references = _or_empty(grads.reference_points, value)
    keys = _or_empty(grads.key, value)
    return grads.query, keys, grads.value, references, grads.sampling_offsets


# The modules' functions are looked up at each call: tests replace them.


def _plain_backward_on_cpu(*arguments: Any) -> tuple[Tensor, ...]:
    return _plain_backward(cpu.backward, *arguments)


def _plain_backward_on_gpu(*arguments: Any) -> tuple[Tensor, ...]:
    return _plain_backward(cuda_backward.backward, *arguments)


def _key_aware_backward_on_cpu(*arguments: Any) -> tuple[Tensor, ...]:
    return _key_aware_backward(cpu.backward, *arguments)


def _key_aware_backward_on_gpu(*arguments: Any) -> tuple[Tensor, ...]:
    return _key_aware_backward(cuda_backward.backward, *arguments)


# Only shapes, for tracing. Gradients have their input's shape, absent ones are empty.


def _plain_fake(
    value: Tensor,
    _shapes: list[int],
    _reference_points: Tensor,
    sampling_offsets: Tensor,
    *_rest: object,
) -> Tensor:
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, sampling_offsets.shape[1], heads * channels)


def _key_aware_fake(query: Tensor, _key: Tensor | None, value: Tensor, *_rest: object) -> Tensor:
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, query.shape[1], heads * channels)


def _gradient_fake(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)


def _plain_backward_fake(
    _grad_output: Tensor,
    value: Tensor,
    _shapes: list[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    of_reference_points: bool,
) -> tuple[Tensor, ...]:
    references = reference_points if of_reference_points else None
    wanted = (value, references, sampling_offsets, attention_logits)
    return tuple(_gradient_fake(tensor, value) for tensor in wanted)


def _key_aware_backward_fake(
    _grad_output: Tensor,
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    _shapes: list[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    of_reference_points: bool,
) -> tuple[Tensor, ...]:
    references = reference_points if of_reference_points else None
    wanted = (query, key, value, references, sampling_offsets)
    return tuple(_gradient_fake(tensor, value) for tensor in wanted)


def _keep_plain(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    value, ctx.spatial_shapes, *rest, valid_ratios = inputs
    _refuse_padding(valid_ratios)
    ctx.save_for_backward(value, *rest)


def _differentiate_plain(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    value, *rest = ctx.saved_tensors
    of_reference_points = ctx.needs_input_grad[2]
    grads = torch.ops.lite_detr.ms_deform_attn_backward(
        grad_output, value, ctx.spatial_shapes, *rest, of_reference_points
    )
    grad_value, grad_references, grad_offsets, grad_logits = grads
    references = grad_references if of_reference_points else None
    return grad_value, None, references, grad_offsets, grad_logits, None


def _keep_key_aware(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    query, key, value, ctx.spatial_shapes, *rest, valid_ratios = inputs
    _refuse_padding(valid_ratios)
    ctx.save_for_backward(query, key, value, *rest)


def _differentiate_key_aware(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, *rest = ctx.saved_tensors
    of_reference_points = ctx.needs_input_grad[4]
    grads = torch.ops.lite_detr.key_aware_deform_attn_backward(
        grad_output, query, key, value, ctx.spatial_shapes, *rest, of_reference_points
    )
    grad_query, grad_key, grad_value, grad_references, grad_offsets = grads
    keys = None if key is None else grad_key
    references = grad_references if of_reference_points else None
    return grad_query, keys, grad_value, None, references, grad_offsets, None


def _refuse_padding(valid_ratios: Tensor | None) -> None:
    """`model.ops` passes them on only where nothing is differentiated."""
    if valid_ratios is not None:
        raise RuntimeError("with valid_ratios the compiled attention cannot be differentiated")


def _differentiate_twice(_ctx: Any, *_grads: Tensor) -> None:
    raise RuntimeError("the compiled deformable attention can be differentiated only once")


def _register(
    name: str,
    kernel: Callable[..., object],
    fake: Callable[..., object],
    differentiate: Callable[..., object],
    keep: Callable[..., None] | None = None,
    on_gpu: Callable[..., object] | None = None,
) -> None:
    _LIBRARY.impl(name, kernel, "CPU")  # type: ignore[no-untyped-call]
    if on_gpu is not None:
        _LIBRARY.impl(name, on_gpu, "CUDA")  # type: ignore[no-untyped-call]
    qualified = f"lite_detr::{name}"
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    torch.library.register_autograd(qualified, differentiate, setup_context=keep, lib=_LIBRARY)


_register("ms_deform_attn", _plain, _plain_fake, _differentiate_plain, _keep_plain, _plain_on_gpu)
_register(
    "key_aware_deform_attn",
    _key_aware,
    _key_aware_fake,
    _differentiate_key_aware,
    _keep_key_aware,
    _key_aware_on_gpu,
)
_register(
    "ms_deform_attn_backward",
    _plain_backward_on_cpu,
    _plain_backward_fake,
    _differentiate_twice,
    on_gpu=_plain_backward_on_gpu,
)
_register(
    "key_aware_deform_attn_backward",
    _key_aware_backward_on_cpu,
    _key_aware_backward_fake,
    _differentiate_twice,
    on_gpu=_key_aware_backward_on_gpu,
)
