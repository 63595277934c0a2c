"""The original deformable attention algorithm on a GPU, as a baseline: original_msda.cu.

Locations and softmax are computed by torch, as the published code does; `OriginalMsda` contains
both, `launch` only the kernel.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from model.ops import cuda_driver, nvrtc
from model.ops.workloads import POINTS, Inputs, Workload, level_sizes

SOURCE = Path(__file__).with_name("original_msda.cu")
_THREADS = 256  # of a block
_MAX_LEVELS = 8
_ELEMENTS = {torch.float32: "float", torch.float16: "Half"}


class CallStruct(ctypes.Structure):
    """Mirror of `OriginalCall`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("value", "locations", "weights", "output")),
        *(
            (name, ctypes.c_int)
            for name in ("batch", "tokens", "heads", "channels", "queries", "levels", "points")
        ),
        *((name, ctypes.c_int * _MAX_LEVELS) for name in ("height", "width", "start")),
    )


def locations_and_weights(workload: Workload, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Sampling locations [B, Q, M, L, P, 2] in float32, and weights [B, Q, M, L * P]."""
    offsets = inputs.sampling_offsets.float()
    references = inputs.reference_points.float()
    if references.shape[-1] == 4:  # noqa: PLR2004 - cxcywh
        steps = offsets / POINTS * references[:, :, None, :, None, 2:] * 0.5
    else:
        steps = offsets / level_sizes(workload.spatial_shapes, offsets)[:, None]
    locations = references[:, :, None, :, None, :2] + steps
    return locations.contiguous(), inputs.logits.softmax(-1).contiguous()


def struct_of(
    workload: Workload, value: Tensor, locations: Tensor, weights: Tensor, output: Tensor
) -> CallStruct:
    """The kernel's argument."""
    call = CallStruct(*(tensor.data_ptr() for tensor in (value, locations, weights, output)))
    call.batch, call.tokens, call.heads, call.channels = value.shape
    call.queries, call.levels = workload.queries, len(workload.spatial_shapes)
    call.points = POINTS
    start = 0
    for level, (height, width) in enumerate(workload.spatial_shapes):
        call.height[level], call.width[level], call.start[level] = height, width, start
        start += height * width
    return call


class OriginalMsda:
    """The algorithm for one workload on a GPU.

    Args:
        workload: plain attention.
        inputs: on the GPU, in float32 or float16.

    Raises:
        BuildError: if the kernel cannot be compiled.
        KernelRefused: if it cannot be loaded.
    """

    def __init__(self, workload: Workload, inputs: Inputs) -> None:
        value = inputs.value.contiguous()
        self._index = (
            torch.cuda.current_device() if value.device.index is None else value.device.index
        )
        code = compiled(value.dtype, torch.cuda.get_device_capability(self._index))
        self._kernel = cuda_driver.load(code, b"original_msda", self._index)
        width = workload.heads * workload.channels
        self.output = value.new_empty(workload.batch, workload.queries, width)
        locations, weights = locations_and_weights(workload, inputs)
        self._kept = (value, locations, weights, self.output)
        self._struct = struct_of(workload, *self._kept)
        self._workload, self._inputs = workload, inputs

    def launch(self) -> Tensor:
        """Only the kernel, on the current stream."""
        stream = torch.cuda.current_stream()
        grid = (-(-self.output.numel() // _THREADS), 1)
        how = cuda_driver.Launch(grid, _THREADS, stream.cuda_stream)
        cuda_driver.launch(self._kernel, self._struct, how, self._index)
        return self.output

    def run(self) -> Tensor:
        """With locations and softmax."""
        locations, weights = locations_and_weights(self._workload, self._inputs)
        self._kept[1].copy_(locations)
        self._kept[2].copy_(weights)
        return self.launch()


def compiled(dtype: torch.dtype, capability: tuple[int, int]) -> bytes:
    """Machine code for float32 or float16."""
    compiler = nvrtc._compiler()
    options = ("--std=c++17", nvrtc._target(compiler, capability), f"-DELEMENT={_ELEMENTS[dtype]}")
    return nvrtc._compile(compiler, SOURCE.name, options, {SOURCE.name: SOURCE.read_bytes()})
