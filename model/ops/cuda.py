"""The kernels of attention on NVIDIA GPUs: tensors in, tensors out, no autograd.

Tensors -> pointers and sizes in a struct -> a kernel compiled for these types and sizes
(`nvrtc.py`) -> launched on torch's current stream. Nothing is copied back and nothing waits, so
CUDA graphs can record a call once an earlier call of the same kind has loaded the kernel. A kernel
that does not compile, load or launch is replaced by the reference; the others stay in use.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor

from model.native.library import BuildError
from model.ops import cuda_driver, reference
from model.ops.cpu import Inputs
from model.ops.cuda_call import MAX_LEVELS, Call, Launchable, variant_of
from model.ops.cuda_driver import KernelRefused
from model.ops.nvrtc import TYPES, Kernel, Variant, machine_code

_CHANNELS = (8, 16, 32, 64, 128, 256)  # of a head: those that fill 1, 2, 4, ... lanes
MAX_BATCH = 65_535  # blocks along y
_MAX_COUNT = 2**31 - 1
_MARGIN = 2**25  # rows that the last blocks and tiles compute in addition


class _Kernels:
    """The kernels loaded by this process on each device, and why others do not work there."""

    enabled = True
    lock = threading.Lock()
    functions: ClassVar[dict[tuple[Kernel, int], object]] = {}
    failures: ClassVar[dict[tuple[Kernel, int], str]] = {}


def takes(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_offsets: Tensor
) -> bool:
    """Whether the kernels support a call with these types and sizes."""
    batch, tokens, heads, channels = value.shape
    queries = sampling_offsets.shape[1]
    return (
        value.dtype in TYPES
        and channels in _CHANNELS
        and len(spatial_shapes) <= MAX_LEVELS
        and batch <= MAX_BATCH
        and queries * heads + _MARGIN <= _MAX_COUNT
        # A token's offset within an image has 32 bits.
        and tokens * heads * channels * value.element_size() < 2 * _MAX_COUNT
        # An image's rows of queries are numbered by 31 bits, in units of 16 bytes.
        and queries * heads * channels * value.element_size() < 16 * _MAX_COUNT
    )


def available(device: torch.device) -> bool:
    """Whether kernels work on a GPU: whether one is loaded, or else a usual one can be.

    If it cannot, one warning says why.
    """
    if not torch.cuda.is_available():
        return False
    usual = Variant(torch.float16, torch.float16, "shared_keys", 32, 8, 4, 4, 2, 4)
    index = _index(device)
    loaded = any(isinstance(key[0], Variant) and key[1] == index for key in _Kernels.functions)
    return loaded or _loaded(usual, device) is not None


def failures(device: torch.device) -> dict[str, str]:
    """The kernels that were called and do not work on that device: reason by kernel."""
    if device.type != "cuda" or not _Kernels.failures:
        return {}
    index = _index(device)
    return {str(key[0]): reason for key, reason in _Kernels.failures.items() if key[1] == index}


@contextmanager
def disabled() -> Iterator[None]:
    """In this block the reference computes everything, in the whole process."""
    before, _Kernels.enabled = _Kernels.enabled, False
    try:
        yield
    finally:
        _Kernels.enabled = before


def give_up(device: torch.device, reason: str) -> None:
    """Uses the reference on that device for all kernels that are loaded there, with warnings."""
    index = _index(device)
    for key in [key for key in _Kernels.functions if key[1] == index]:
        _give_up(key, KernelRefused(reason))


def forward(inputs: Inputs) -> Tensor:
    """Attention of every query, [B, Q, M*D]."""
    value = inputs.value
    batch, _, heads, channels = value.shape
    output = value.new_empty(batch, inputs.sampling_offsets.shape[1], heads * channels)
    if output.numel() == 0:
        return output
    variant = variant_of(inputs)
    done = run(variant, value.device, lambda: Call(inputs, variant, output))
    return output if done else by_reference(inputs)


def run(kernel: Kernel, device: torch.device, prepare: Callable[[], Launchable]) -> bool:
    """Enqueues a kernel on torch's current stream; False if it does not work on that device.

    Args:
        kernel: which one.
        device: a GPU.
        prepare: makes its arguments, once it is loaded.
    """
    function = _loaded(kernel, device)
    if function is None:
        return False
    try:
        _launch(function, prepare(), device)
    except KernelRefused as error:
        _give_up((kernel, _index(device)), error)
        return False
    return True


def by_reference(inputs: Inputs) -> Tensor:
    """The same in plain PyTorch, differentiable."""
    inputs = inputs.without_padding()
    sides = inputs.spatial_shapes
    shapes = list(zip(sides[::2], sides[1::2], strict=True))
    located = (shapes, inputs.reference_points, inputs.sampling_offsets)
    if inputs.query is None:
        assert inputs.logits is not None
        return reference.ms_deform_attn(inputs.value, *located, inputs.logits)
    return reference.key_aware_deform_attn(inputs.query, inputs.key, inputs.value, *located)


def _loaded(kernel: Kernel, device: torch.device) -> object | None:
    """The function on that device; None, after one warning, if it does not work there.

    Also None in a block of `disabled`.

    Raises:
        torch.OutOfMemoryError: if the GPU has no memory for the code.
        RuntimeError: if the CUDA context is lost.
    """
    if not _Kernels.enabled:
        return None
    key = (kernel, _index(device))
    function = _Kernels.functions.get(key)
    if function is None and key not in _Kernels.failures:
        with _Kernels.lock:
            function = _Kernels.functions.get(key)
            if function is None and key not in _Kernels.failures:
                try:
                    function = _Kernels.functions[key] = _load(*key)
                except (BuildError, KernelRefused) as error:
                    _give_up(key, error)
    return function


def _load(kernel: Kernel, index: int) -> object:
    try:
        capability = torch.cuda.get_device_capability(index)
    except Exception as error:  # of torch without a driver
        raise BuildError(f"CUDA is not usable: {error}") from error
    code = machine_code(kernel, capability)
    try:
        return cuda_driver.load(code, kernel.entry, index)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()  # what torch keeps for itself may be all there is
        return cuda_driver.load(code, kernel.entry, index)


def _launch(function: object, call: Launchable, device: torch.device) -> None:
    stream = torch.cuda.current_stream(device)
    how = cuda_driver.Launch(call.grid, call.threads, stream.cuda_stream)
    cuda_driver.launch(function, call.struct, how, stream.device_index)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _give_up(key: tuple[Kernel, int], error: Exception) -> None:
    """Uses the reference for this kernel from now on; warns once for each kernel."""
    kernel, index = key
    _Kernels.functions.pop(key, None)
    known = key in _Kernels.failures
    _Kernels.failures[key] = str(error)
    if not known:
        warnings.warn(
            f"the GPU kernel {kernel} does not work on cuda:{index}, where plain PyTorch "
            f"computes it, {kernel.loss}: {error}",
            RuntimeWarning,
            stacklevel=5,
        )
