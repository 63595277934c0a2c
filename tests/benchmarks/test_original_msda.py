"""The baseline of the GPU measurement: compiled for this processor, and for GPUs."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import pytest
import torch

from benchmarks.gpu import original_msda
from model.native.library import BuildError
from model.ops import nvrtc
from model.ops.workloads import Workload, cast, official_formula, random_inputs

SHAPES = ((9, 7), (5, 4), (3, 3), (2, 1))
TOKENS = sum(height * width for height, width in SHAPES)

ON_HOST = """
#include "original_msda.cu"
extern "C" void run(const OriginalCall *call, int count) {
    for (block_index = 0; block_index < count; ++block_index) original_msda(*call);
}
extern "C" int size_of_call() { return sizeof(OriginalCall); }
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler here")
    folder = tmp_path_factory.mktemp("original")
    (folder / "host.cpp").write_text(ON_HOST)
    library = folder / "original.so"
    flags = ("-std=c++17", "-O1", "-fPIC", "-shared", f"-I{original_msda.SOURCE.parent}")
    subprocess.run([compiler, *flags, str(folder / "host.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("queries", [TOKENS, 900], ids=["points", "boxes"])
def test_the_original_algorithm_gives_the_formula(host: ctypes.CDLL, queries: int) -> None:
    workload = Workload("test", False, SHAPES, 2, 3, queries)
    inputs = random_inputs(workload)
    locations, weights = original_msda.locations_and_weights(workload, inputs)
    output = torch.full((2, queries, 3 * 32), float("nan"))
    value = inputs.value.contiguous()
    call = original_msda.struct_of(workload, value, locations, weights, output)
    host.run(ctypes.byref(call), output.numel())
    exact = official_formula(workload, cast(inputs, torch.float64, "cpu"))
    torch.testing.assert_close(output.double(), exact, atol=1e-4, rtol=0)


def test_the_struct_is_that_of_the_kernel(host: ctypes.CDLL) -> None:
    assert ctypes.sizeof(original_msda.CallStruct) == host.size_of_call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_it_compiles_for_gpus(dtype: torch.dtype) -> None:
    try:
        nvrtc._compiler()
    except BuildError as error:
        pytest.skip(f"the GPU kernels cannot be compiled here: {error}")
    code = original_msda.compiled(dtype, (9, 0))
    assert code.startswith(b"\x7fELF")
    assert b"original_msda" in code
