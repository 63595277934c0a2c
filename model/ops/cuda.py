"""The warp kernels on NVIDIA GPUs: tensors in, tensors out, no autograd.

Tensors -> pointers and sizes in a struct -> a kernel compiled for these types and sizes
(`nvrtc.py`) -> launched on torch's current stream. Nothing is copied back and nothing waits, so
CUDA graphs can record a call once an earlier call of the same kind has loaded the kernel.
"""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from model.native.library import BuildError
from model.ops import reference
from model.ops.cpu import Inputs
from model.ops.nvrtc import TYPES, Kind, Variant, machine_code

_KERNEL = b"lite_detr_deform_attn"
_MAX_LEVELS = 8
_CHANNELS_PER_LANE, _LANES, _WARPS_PER_BLOCK = 8, 32, 4
_CHANNELS = (8, 16, 32, 64, 128, 256)  # of a head: those that fill 1, 2, 4, ... lanes
_MAX_BATCH = 65_535  # blocks along y
_MAX_COUNT = 2**31 - 1
_QUAD_BYTES = 16


class _Kernels:
    """The kernels loaded by this process, and whether loading failed."""

    lock = threading.Lock()
    failed = False
    functions: ClassVar[dict[tuple[Variant, int], object]] = {}
    contexts: ClassVar[dict[int, object]] = {}


def takes(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_offsets: Tensor
) -> bool:
    """Whether the kernels support a call with these types and sizes."""
    batch, tokens, heads, channels = value.shape
    queries = sampling_offsets.shape[1]
    row_quads = heads * channels * value.element_size() // _QUAD_BYTES
    return (
        not _Kernels.failed
        and value.dtype in TYPES
        and channels in _CHANNELS
        and len(spatial_shapes) <= _MAX_LEVELS
        and batch <= _MAX_BATCH
        and queries * heads + _LANES * _WARPS_PER_BLOCK <= _MAX_COUNT
        and tokens * row_quads < 2 * _MAX_COUNT  # a token's offset within an image has 32 bits
    )


def available(device: torch.device) -> bool:
    """Whether kernels can be compiled and loaded for a GPU; the first call tries it.

    If they cannot, one warning says why.
    """
    usual = Variant(torch.float16, torch.float16, "shared_keys", 32, 8, 4, 4, 2, 4)
    return torch.cuda.is_available() and _loaded(usual, device) is not None


def forward(inputs: Inputs) -> Tensor:
    """Attention of every query, [B, Q, M*D]."""
    value = inputs.value
    batch, _, heads, channels = value.shape
    output = value.new_empty(batch, inputs.sampling_offsets.shape[1], heads * channels)
    if output.numel() == 0:
        return output
    variant = _variant(inputs)
    kernel = _loaded(variant, value.device)
    if kernel is None:
        return _by_reference(inputs)
    call = Call(inputs, variant, output)
    _launch(kernel, call, value.device)
    return output


class _Level(ctypes.Structure):
    """Mirror of `Level` in csrc/call.cuh."""

    _fields_ = tuple((name, ctypes.c_int) for name in ("height", "width", "start"))


class CallStruct(ctypes.Structure):
    """Mirror of `Call` in csrc/call.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("value", "key", "query", "logits")),
        *((name, ctypes.c_void_p) for name in ("reference_points", "offsets", "output")),
        *((name, ctypes.c_int) for name in ("tokens", "queries")),
        ("levels", _Level * _MAX_LEVELS),
    )


class Call:
    """The struct that the kernel reads; keeps alive what it points at."""

    def __init__(self, inputs: Inputs, variant: Variant, output: Tensor) -> None:
        given = (inputs.value, inputs.key, inputs.query, inputs.logits)
        self.tensors = (
            *(None if tensor is None else _array(tensor, variant.value_type) for tensor in given),
            _array(inputs.reference_points, torch.float32),
            _array(inputs.sampling_offsets, variant.offset_type),
            output,
        )
        levels = (_Level * _MAX_LEVELS)()
        sides, start = inputs.spatial_shapes, 0
        for level, (height, width) in enumerate(zip(sides[::2], sides[1::2], strict=True)):
            levels[level] = _Level(height, width, start)
            start += height * width
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in self.tensors)
        self.queries = inputs.sampling_offsets.shape[1]
        self.struct = CallStruct(*pointers, start, self.queries, levels)
        rows = _LANES * _CHANNELS_PER_LANE // variant.channels * _WARPS_PER_BLOCK
        self.grid = (-(-self.queries * variant.heads // rows), output.shape[0])


def _variant(inputs: Inputs) -> Variant:
    kind: Kind = "separate_keys"
    if inputs.query is None:
        kind = "plain"
    elif inputs.key is None:
        kind = "shared_keys"
    value_type, offset_type = inputs.value.dtype, inputs.sampling_offsets.dtype
    _, _, heads, offset_levels, points, _ = inputs.sampling_offsets.shape
    return Variant(
        value_type,
        offset_type if offset_type == value_type else torch.float32,
        kind,
        inputs.value.shape[3],
        heads,
        len(inputs.spatial_shapes) // 2,
        points,
        inputs.reference_points.shape[-1],
        offset_levels,
    )


def _array(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in that type, contiguous and aligned for 16-byte loads."""
    tensor = tensor.to(dtype).contiguous()
    return tensor if tensor.data_ptr() % _QUAD_BYTES == 0 else tensor.clone()


def _by_reference(inputs: Inputs) -> Tensor:
    sides = inputs.spatial_shapes
    shapes = list(zip(sides[::2], sides[1::2], strict=True))
    located = (shapes, inputs.reference_points, inputs.sampling_offsets)
    if inputs.query is None:
        assert inputs.logits is not None
        return reference.ms_deform_attn(inputs.value, *located, inputs.logits)
    return reference.key_aware_deform_attn(inputs.query, inputs.key, inputs.value, *located)


def _loaded(variant: Variant, device: torch.device) -> object | None:
    """The kernel on that device; None, after one warning, if it cannot be loaded."""
    index = torch.cuda.current_device() if device.index is None else device.index
    kernel = _Kernels.functions.get((variant, index))
    if kernel is None and not _Kernels.failed:
        with _Kernels.lock:
            kernel = _Kernels.functions.get((variant, index))
            if kernel is None and not _Kernels.failed:
                try:
                    kernel = _load(variant, index)
                except BuildError as error:
                    _Kernels.failed = True
                    warnings.warn(
                        "deformable attention runs in plain PyTorch on the GPU, many times "
                        f"slower: {error}",
                        RuntimeWarning,
                        stacklevel=4,
                    )
                else:
                    _Kernels.functions[variant, index] = kernel
    return kernel


def _load(variant: Variant, index: int) -> object:
    try:
        code = machine_code(variant, torch.cuda.get_device_capability(index))
        from cuda.bindings import driver  # noqa: PLC0415 - only installed with a CUDA build of torch

        if index not in _Kernels.contexts:  # torch's context: a device's primary one is shared
            _checked(driver.cuInit(0))
            (device,) = _checked(driver.cuDeviceGet(index))
            (_Kernels.contexts[index],) = _checked(driver.cuDevicePrimaryCtxRetain(device))
        _checked(driver.cuCtxPushCurrent(_Kernels.contexts[index]))
        try:
            (module,) = _checked(driver.cuModuleLoadData(code))
            (function,) = _checked(driver.cuModuleGetFunction(module, _KERNEL))
        finally:
            driver.cuCtxPopCurrent()
    except BuildError:
        raise
    except Exception as error:  # of torch, the bindings or a missing driver
        raise BuildError(f"the CUDA driver cannot load the kernel: {error}") from error
    kernel: object = function
    return kernel


def _launch(kernel: object, call: Call, device: torch.device) -> None:
    from cuda.bindings import driver  # noqa: PLC0415 - only installed with a CUDA build of torch

    stream = torch.cuda.current_stream(device)
    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(call.struct))
    _checked(driver.cuCtxPushCurrent(_Kernels.contexts[stream.device_index]))
    try:
        _checked(
            driver.cuLaunchKernel(
                kernel,
                *(*call.grid, 1),
                *(_LANES * _WARPS_PER_BLOCK, 1, 1),
                0,
                stream.cuda_stream,
                ctypes.addressof(parameters),
                0,
            )
        )
    finally:
        driver.cuCtxPopCurrent()


def _checked(returned: tuple[object, ...]) -> tuple[object, ...]:
    """The values that a driver function returned after its status.

    Raises:
        RuntimeError: for any status but success.
    """
    result, *values = returned
    if int(result) != 0:  # type: ignore[call-overload]
        raise RuntimeError(f"the CUDA driver returned {result}")
    return tuple(values)
