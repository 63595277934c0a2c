"""The compiled kernels on the CPU: float32 or bfloat16 tensors in, tensors out, no autograd.

Tensors -> pointers in a struct -> C++ (`csrc/`), which runs without the interpreter lock on torch's
own threads. The arithmetic is float32 whatever the type of the arrays, which may differ from one
another. The backward pass recomputes the samples, so only the inputs are kept.
`operators.py` registers these functions as torch operators.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from model.native.lazy import LazyLibrary
from model.native.library import ATTENTION
from model.native.prebuilt import load_any
from model.ops.padding import without_padding

DTYPES = (torch.float32, torch.bfloat16)

# Of the library; each takes a struct and a pointer to its output.
_FUNCTIONS = (
    "lite_detr_deform_attn_forward",
    "lite_detr_deform_attn_backward",
    "lite_detr_winograd_spread",
    "lite_detr_winograd_gather",
)
# Each takes a struct that has its outputs, too.
_FUNCTIONS_OF_STRUCTS = (
    "lite_detr_bottlenecks",
    "lite_detr_decoder",
    "lite_detr_encoder",
    "lite_detr_projections",
    "lite_detr_depthwise_forward",
    "lite_detr_depthwise_backward",
)

# Sampled floats per thread; for fewer, waking another thread costs more than it gains.
_FLOATS_PER_THREAD = 1 << 17


@dataclass(frozen=True)
class Inputs:
    """One call: plain attention has `logits`, key-aware attention a `query` and maybe a `key`."""

    value: Tensor  # [B, S, M, D]
    reference_points: Tensor  # [B, Q, L, 2 or 4]
    sampling_offsets: Tensor  # [B, Q, M, L or 1, P, 2]
    spatial_shapes: Sequence[int]  # H0, W0, H1, W1, ...
    query: Tensor | None = None  # [B, Q, M, D]
    key: Tensor | None = None  # [B, S, M, D]; None: the keys are the values
    logits: Tensor | None = None  # [B, Q, M, L*P]
    valid_ratios: Tensor | None = None  # [B, L, 2], see `without_padding`

    def without_padding(self) -> Inputs:
        """The same call with zeros for the values and keys of padding, and no `valid_ratios`."""
        if self.valid_ratios is None:
            return self
        sides = self.spatial_shapes
        shapes = list(zip(sides[::2], sides[1::2], strict=True))
        value = without_padding(self.value, shapes, self.valid_ratios)
        key = None if self.key is None else without_padding(self.key, shapes, self.valid_ratios)
        return replace(self, value=value, key=key, valid_ratios=None)


@dataclass(frozen=True)
class InputGradients:
    """Gradients of a call's inputs; None where the input is None or the gradient not requested."""

    value: Tensor
    reference_points: Tensor | None
    sampling_offsets: Tensor
    query: Tensor | None
    key: Tensor | None
    logits: Tensor | None


def available() -> bool:
    """Whether the kernels can be used here; the first call builds or loads them.

    If they cannot, one warning says why.
    """
    return _kernels.available()


def forward(inputs: Inputs) -> Tensor:
    """Attention of every query, [B, Q, M*D]."""
    inputs = inputs.without_padding()
    batch, _, heads, channels = inputs.value.shape
    dtype = inputs.value.dtype
    if inputs.key is not None and inputs.key.dtype != dtype:  # the kernels take one type for both
        inputs = replace(inputs, value=inputs.value.float(), key=inputs.key.float())
    output = inputs.value.new_empty(batch, inputs.sampling_offsets.shape[1], heads * channels)
    if output.numel() > 0:
        call = _Call(inputs)
        library().lite_detr_deform_attn_forward(ctypes.byref(call.problem), output.data_ptr())
    return output.to(dtype)


def backward(inputs: Inputs, grad_output: Tensor, *, of_reference_points: bool) -> InputGradients:
    """Gradients of all inputs from that of the output, [B, Q, M*D]; deterministic.

    Args:
        inputs: those of the forward pass.
        grad_output: gradient of its output.
        of_reference_points: whether to compute their gradient, a sum over heads.
    """
    exact = _float32(inputs)
    grads = _backward(exact, grad_output.float(), of_reference_points=of_reference_points)
    if exact is inputs:
        return grads
    narrow = {
        field.name: _like(getattr(grads, field.name), getattr(inputs, field.name))
        for field in fields(InputGradients)
    }
    return InputGradients(**narrow)  # type: ignore[arg-type]


def _backward(inputs: Inputs, grad_output: Tensor, *, of_reference_points: bool) -> InputGradients:
    """`backward` for inputs that are all float32."""
    new = torch.zeros_like if grad_output.numel() == 0 else torch.empty_like
    contiguous = torch.contiguous_format

    def like(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else new(tensor, memory_format=contiguous)

    value = new(inputs.value, memory_format=contiguous)
    offsets = new(inputs.sampling_offsets, memory_format=contiguous)
    query, key, logits = like(inputs.query), like(inputs.key), like(inputs.logits)
    shares = None
    if of_reference_points:
        batch, queries, levels, size = inputs.reference_points.shape
        shares = value.new_empty(batch, value.shape[2], queries, levels, size)
    if grad_output.numel() > 0:
        call, grad_output = _Call(inputs), grad_output.contiguous()
        grads = _Gradients(
            *map(_address, (grad_output, value, key, query, logits, shares, offsets))
        )
        library().lite_detr_deform_attn_backward(ctypes.byref(call.problem), ctypes.byref(grads))
    reference_points = None if shares is None else shares.sum(1)
    return InputGradients(value, reference_points, offsets, query, key, logits)


def _float32(inputs: Inputs) -> Inputs:
    """The inputs themselves if all are float32, else copies in float32."""
    tensors = {name: t for name, t in vars(inputs).items() if isinstance(t, Tensor)}
    narrow = {name: t.float() for name, t in tensors.items() if t.dtype != torch.float32}
    return replace(inputs, **narrow) if narrow else inputs  # type: ignore[arg-type]


def _like(gradient: Tensor | None, of: Tensor | None) -> Tensor | None:
    return None if gradient is None or of is None else gradient.to(of.dtype)


def _load() -> ctypes.CDLL:
    library = load_any(ATTENTION)
    for name in _FUNCTIONS:
        function = getattr(library, name)
        function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_void_p), None
    for name in ("lite_detr_lanes", "lite_detr_panel"):
        function = getattr(library, name)
        function.argtypes, function.restype = (), ctypes.c_int64
    for name in _FUNCTIONS_OF_STRUCTS:
        function = getattr(library, name)
        function.argtypes, function.restype = (ctypes.c_void_p,), None
    return library


_kernels = LazyLibrary(_load, "deformable attention runs in plain PyTorch, several times slower")


def library() -> ctypes.CDLL:
    """The loaded kernels.

    Raises:
        RuntimeError: if they are not `available`.
    """
    if not available():
        raise RuntimeError("the compiled CPU kernels are not available here")
    assert _kernels.library is not None
    return _kernels.library


class _Array(ctypes.Structure):
    """Mirror of `Array` in csrc/problem.h."""

    _fields_ = (("data", ctypes.c_void_p), ("bfloat16", ctypes.c_int64))


class _Problem(ctypes.Structure):
    """Mirror of `Problem` in csrc/problem.h."""

    _fields_ = (
        *((name, _Array) for name in ("value", "key", "query", "logits")),
        *((name, _Array) for name in ("reference_points", "offsets")),
        ("spatial_shapes", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "tokens", "heads", "channels", "queries")),
        *((name, ctypes.c_int64) for name in ("levels", "points", "offset_levels")),
        *((name, ctypes.c_int64) for name in ("reference_size", "threads")),
    )


class _Gradients(ctypes.Structure):
    """Mirror of `Gradients` in csrc/problem.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("output", "value", "key", "query", "logits")),
        *((name, ctypes.c_void_p) for name in ("reference_points", "offsets")),
    )


class _Call:
    """The struct that the kernels read; keeps alive what it points at."""

    def __init__(self, inputs: Inputs) -> None:
        given = (inputs.value, inputs.key, inputs.query, inputs.logits)
        located = (inputs.reference_points, inputs.sampling_offsets)
        self.tensors = [None if t is None else t.contiguous() for t in (*given, *located)]
        self.shapes = (ctypes.c_int64 * len(inputs.spatial_shapes))(*inputs.spatial_shapes)
        batch, tokens, heads, channels = inputs.value.shape
        _, queries, _, offset_levels, points, _ = inputs.sampling_offsets.shape
        levels = len(inputs.spatial_shapes) // 2
        sampled = batch * queries * heads * levels * points * channels
        self.problem = _Problem(
            *map(_array, self.tensors),
            ctypes.addressof(self.shapes),
            *(batch, tokens, heads, channels, queries, levels, points, offset_levels),
            inputs.reference_points.shape[-1],
            min(torch.get_num_threads(), 1 + sampled // _FLOATS_PER_THREAD),
        )


def _array(tensor: Tensor | None) -> _Array:
    return _Array(_address(tensor), tensor is not None and tensor.dtype == torch.bfloat16)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
