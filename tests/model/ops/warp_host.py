"""The warp kernels compiled for this processor, in place of a GPU's launch."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.ops import cpu, cuda
from model.ops.nvrtc import Variant
from tests.model.ops.attention_cases import Case

_HERE = Path(__file__).parent
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def build(directory: Path) -> ctypes.CDLL:
    """host_warp.cpp as a library."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler here to compile the warp kernels for the host")
    flags = ("-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas")
    sources = Path(cuda.__file__).parent / "csrc"
    library = directory / "host_warp.so"
    command = [compiler, *flags, f"-I{sources}", str(_HERE / "host_warp.cpp"), "-o", str(library)]
    subprocess.run(command, check=True)
    return opened(str(library))


def opened(path: str) -> ctypes.CDLL:
    """A library that `build` compiled."""
    loaded = ctypes.CDLL(path)
    loaded.lite_detr_host_warp.restype = ctypes.c_int
    return loaded


def run(library: ctypes.CDLL, argument: object, variant: Variant, batch: int) -> None:
    """Runs a kernel on its argument: a reference or the address of a `cuda.CallStruct`."""
    sizes = (ctypes.c_int * 5)(
        variant.levels,
        variant.points,
        variant.heads,
        variant.reference_size,
        variant.offset_levels,
    )
    done = library.lite_detr_host_warp(
        ctypes.c_void_p(argument) if isinstance(argument, int) else argument,
        sizes,
        batch,
        variant.channels,
        _TYPES[variant.value_type],
        variant.offset_type != variant.value_type,
    )
    assert done, variant


def attend(library: ctypes.CDLL, case: Case, *, fixed: bool = False) -> Tensor:
    """The case's attention by 32 lanes in a loop, through the product's own preparation.

    Args:
        library: what `build` gave.
        case: tensors on the CPU, in types that the kernels take.
        fixed: by the sizes of FixedSizes<4, 4, 8, 2, 4> and 32 channels of float16.
    """
    inputs = cpu.Inputs(
        value=case.value,
        reference_points=case.reference_points,
        sampling_offsets=case.sampling_offsets,
        spatial_shapes=[side for shape in case.spatial_shapes for side in shape],
        query=case.query,
        key=case.key,
        logits=case.logits,
    )
    variant = cuda._variant(inputs)
    assert cuda.takes(case.value, case.spatial_shapes, case.sampling_offsets)
    batch, _, heads, channels = case.value.shape
    output = case.value.new_empty(batch, case.sampling_offsets.shape[1], heads * channels)
    output.fill_(float("nan"))
    call = cuda.Call(inputs, variant, output)
    if fixed:
        library.lite_detr_host_warp_fixed(ctypes.byref(call.struct), batch)
        return output
    run(library, ctypes.byref(call.struct), variant, batch)
    return output


def narrowed(case: Case, dtype: torch.dtype, *, float_offsets: bool = False) -> Case:
    """The case in that type; reference points stay float32, as in the network."""
    narrow = case.mapped(dtype)
    offsets = case.sampling_offsets if float_offsets else narrow.sampling_offsets
    return replace(narrow, reference_points=case.reference_points, sampling_offsets=offsets)
