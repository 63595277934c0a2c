"""The warp kernels compiled for this processor, in place of a GPU's launch."""

from __future__ import annotations

import ctypes
import fcntl
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.ops import cpu, cuda
from model.ops.cuda_call import Call, variant_of
from model.ops.cuda_norm import NormCall, NormVariant
from model.ops.nvrtc import Variant
from tests.model.ops.attention_cases import Case

_HERE = Path(__file__).parent
TYPES = {torch.float32: "float", torch.float16: "Half", torch.bfloat16: "Bfloat16Bits"}


class HostWarp:
    """The kernels for the CPU: a library per type of values, compiled when first used.

    Args:
        directory: of the libraries; those that are there are not compiled again.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._libraries: dict[torch.dtype, ctypes.CDLL] = {}

    def library(self, dtype: torch.dtype) -> ctypes.CDLL:
        """host_warp.cpp for values of that type."""
        if dtype not in self._libraries:
            self._libraries[dtype] = _build(self.directory, TYPES[dtype])
        return self._libraries[dtype]

    def run(self, variant: Variant, call: Call) -> None:
        """In place of a launch on a GPU, with tensors on the CPU."""
        self.run_at(variant, ctypes.addressof(call.struct), call.grid)

    def run_at(self, variant: Variant, struct: int, grid: tuple[int, int]) -> None:
        """The same with what a launch gets: the argument's address and the blocks along x and y."""
        library = self.library(variant.value_type)
        float_offsets = variant.offset_type != variant.value_type
        sizes, warps = sizes_of(variant), warps_of(variant, grid)
        arguments = (ctypes.c_void_p(struct), sizes, *warps, variant.channels)
        if variant.backward:
            races = library.lite_detr_host_differentiate(*arguments, float_offsets)
        else:
            races = library.lite_detr_host_attend(*arguments, variant.splits, float_offsets)
        assert races == 0, (races, variant)

    def run_fixed(self, variant: Variant, call: Call) -> None:
        """The forward pass by the sizes of FixedSizes<4, 4, 8, 2, 4> and 32 channels."""
        library, struct = self.library(variant.value_type), ctypes.byref(call.struct)
        assert library.lite_detr_host_attend_fixed(struct, *warps_of(variant, call.grid)) == 0

    def add_norm(self, variant: NormVariant, call: NormCall) -> None:
        """The sum with a residual, normalised."""
        self.add_norm_at(variant, ctypes.addressof(call.struct), call.grid)

    def add_norm_at(self, variant: NormVariant, struct: int, grid: tuple[int, int]) -> None:
        """See `run_at`."""
        library = self.library(variant.value_type)
        warps = (grid[0] * variant.warps, grid[1])
        races = library.lite_detr_host_add_norm(ctypes.c_void_p(struct), *warps, variant.width)
        assert races == 0, (races, variant)


def _build(directory: Path, value_type: str) -> ctypes.CDLL:
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler here to compile the warp kernels for the host")
    flags = ("-std=c++17", "-O0", "-fPIC", "-shared", "-Wno-unknown-pragmas")
    sources = Path(cuda.__file__).parent / "csrc"
    library = directory / f"host_warp_{value_type}.so"
    macros = [f"-DVALUE_TYPE={value_type}", *["-DCARELESS"] * (value_type == "float")]
    includes = (f"-I{sources}", f"-I{_HERE}")
    command = [
        compiler,
        *flags,
        *macros,
        *includes,
        str(_HERE / "host_warp.cpp"),
        "-o",
        str(library),
    ]
    with (directory / f"lock_{value_type}").open("w") as lock:  # of the workers of a test run
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.lite_detr_size_of_call.restype = ctypes.c_size_t
    loaded.lite_detr_size_of_backward_call.restype = ctypes.c_size_t
    loaded.lite_detr_size_of_norm_call.restype = ctypes.c_size_t
    return loaded


def warps_of(variant: Variant, grid: tuple[int, int]) -> tuple[int, int]:
    """Warps of an image, and images."""
    return grid[0] * variant.warps, grid[1]


def sizes_of(variant: Variant) -> Any:
    """Mirror of `AnySizes` in csrc/call.cuh."""
    return (ctypes.c_int * 5)(
        variant.levels,
        variant.points,
        variant.heads,
        variant.reference_size,
        variant.offset_levels,
    )


def inputs_of(case: Case) -> cpu.Inputs:
    """The case as the operators pass it on."""
    return cpu.Inputs(
        value=case.value,
        reference_points=case.reference_points,
        sampling_offsets=case.sampling_offsets,
        spatial_shapes=[side for shape in case.spatial_shapes for side in shape],
        query=case.query,
        key=case.key,
        logits=case.logits,
    )


def prepared(
    case: Case, splits: int = 1, valid_ratios: Tensor | None = None
) -> tuple[Variant, Call, Tensor]:
    """The kernel for the case, its arguments, and its output, which is NaN still.

    Args:
        case: tensors on the CPU, in types that the kernels take.
        splits: groups of lanes among which points are split, whatever the number of queries.
        valid_ratios: see `model.ops`.
    """
    inputs = replace(inputs_of(case), valid_ratios=valid_ratios)
    variant = replace(variant_of(inputs), splits=splits)
    assert cuda.takes(case.value, case.spatial_shapes, case.sampling_offsets)
    batch, _, heads, channels = case.value.shape
    output = case.value.new_empty(batch, case.sampling_offsets.shape[1], heads * channels)
    output.fill_(float("nan"))
    return variant, Call(inputs, variant, output), output


def attend(
    warp: HostWarp,
    case: Case,
    *,
    fixed: bool = False,
    splits: int = 1,
    valid_ratios: Tensor | None = None,
) -> Tensor:
    """The case's attention by 32 lanes in a loop, through the product's own preparation."""
    variant, call, output = prepared(case, splits, valid_ratios)
    (warp.run_fixed if fixed else warp.run)(variant, call)
    return output


def narrowed(case: Case, dtype: torch.dtype, *, float_offsets: bool = False) -> Case:
    """The case in that type; reference points stay float32, as in the network."""
    narrow = case.mapped(dtype)
    offsets = case.sampling_offsets if float_offsets else narrow.sampling_offsets
    return replace(narrow, reference_points=case.reference_points, sampling_offsets=offsets)
