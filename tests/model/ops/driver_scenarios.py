"""What `model.ops.cuda` does on the stand-in driver: run by test_cuda_driver.py, in a process.

    python -m tests.model.ops.driver_scenarios WARP_LIBRARIES

The stand-in is found as `libcuda.so.1`; its kernels are those of the library, compiled for the
host. Tensors are on the CPU; torch's functions for devices are replaced. Each scenario runs in a
process of its own (a fork), because a driver is initialised once. Prints a line of JSON for each:
its name, and what failed.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model import ops
from model.native.library import BuildError
from model.ops import cpu, cuda, cuda_norm, reference
from model.ops.cuda_call import variant_of
from model.ops.cuda_norm import NormVariant
from model.ops.nvrtc import Variant
from service.engine.cuda_graphs import CudaGraphs
from service.engine.device import BatchShape, DeviceLost
from tests.model.ops import warp_host
from tests.model.ops.attention_cases import KINDS, Case, Kind, assert_close, attend, random_case
from tests.model.ops.warp_host import HostWarp
from tests.support.standin_card import StandInCard

CODE = b"\x7fELF machine code"
OUT_OF_MEMORY, ILLEGAL_ADDRESS, CAPTURE_INVALIDATED, NO_RESOURCES = 2, 700, 901, 701
NOT_FOUND = 500
STREAM = 77
Scenario = Callable[["World"], None]
SCENARIOS: dict[str, Scenario] = {}


class World:
    """The stand-in driver, and torch as it would be with two GPUs."""

    def __init__(self, warp: HostWarp) -> None:
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.driver.standin_calls.restype = ctypes.c_char_p
        self.warp, self.index, self.code, self.emptied = warp, 0, CODE, 0
        self.launches: list[tuple[int, int, int, int]] = []  # grid, stream, device
        self._inputs: list[cpu.Inputs] = []
        self._norm: NormVariant | None = None
        kernel = ctypes.CFUNCTYPE(
            None, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_int
        )
        self._kernel = kernel(self._run)  # kept: the driver has only its address
        self.driver.standin_set_kernel(self._kernel)
        replaced: dict[str, Any] = {
            "is_available": lambda: True,
            "current_device": lambda: self.index,
            "get_device_capability": lambda _index: (9, 0),
            "current_stream": lambda _device: SimpleNamespace(
                device_index=self.index, cuda_stream=STREAM
            ),
            "empty_cache": self._empty_cache,
        }
        for name, value in replaced.items():
            setattr(torch.cuda, name, value)
        self.compile_as(lambda _variant: self.code)

    def compile_as(self, compiled: Callable[[Any], bytes]) -> None:
        """Replaces the compiler."""
        vars(cuda)["machine_code"] = lambda variant, _capability: compiled(variant)

    def calls(self, name: str = "") -> list[str]:
        """The functions of the driver that were called, in order; those of a name."""
        called = self.driver.standin_calls().decode().split()
        return [one for one in called if one.startswith(name)]

    def fail(self, function: str, status: int, calls_before: int = 0) -> None:
        """Makes a function fail from one of the next calls on, until `recover`."""
        self.driver.standin_fail(function.encode(), status, calls_before)

    def recover(self) -> None:
        self.driver.standin_recover()

    def compute(self, case: Case) -> Tensor:
        """The case by the GPU's path."""
        shapes = [side for shape in case.spatial_shapes for side in shape]
        located = (case.reference_points, case.sampling_offsets)
        self._inputs = [cpu.Inputs(case.value, *located, shapes, case.query, case.key, case.logits)]
        return cuda.forward(self._inputs[0])

    def normalise(self, x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """The sum with a residual, normalised, by the GPU's path."""
        self._norm = NormVariant(x.dtype, x.shape[-1])
        return cuda_norm.forward(x, residual, norm.weight, norm.bias, norm.eps)

    def _run(self, argument: int, grid_x: int, grid_y: int, stream: int, device: int) -> None:
        self.launches.append((grid_x, grid_y, stream, device))
        if self._norm is not None:
            self.warp.add_norm_at(self._norm, argument, (grid_x, grid_y))
        else:
            self.warp.run_at(variant_of(self._inputs[0]), argument, (grid_x, grid_y))

    def _empty_cache(self) -> None:
        self.emptied += 1


def scenario(function: Scenario) -> Scenario:
    """Adds a scenario by its name."""
    SCENARIOS[function.__name__] = function
    return function


def half(kind: Kind = "shared keys") -> Case:
    """A small case in float16."""
    return warp_host.narrowed(random_case(kind, heads=8), torch.float16)


def assert_right(output: Tensor, case: Case) -> None:
    """The output is that of the formula."""
    assert_close(output.float(), attend(reference, case.mapped(torch.float64)), 4e-3)


@contextmanager
def warned() -> Any:
    """Collects warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def variant_of_case(case: Case) -> Variant:
    """The kernel that the case calls."""
    world_inputs = [side for shape in case.spatial_shapes for side in shape]
    located = (case.reference_points, case.sampling_offsets)
    return variant_of(
        cpu.Inputs(case.value, *located, world_inputs, case.query, case.key, case.logits)
    )


@scenario
def every_kind_is_computed_on_either_device(world: World) -> None:
    for world.index in (0, 1):
        for kind in KINDS:
            assert_right(world.compute(half(kind)), half(kind))
    # 11 queries of 8 heads, 4 warps each; 2 images.
    blocks = (4, 4, 6)  # of 12, 12 and 8 warps
    assert world.launches == [(x, 2, STREAM, device) for device in (0, 1) for x in blocks]
    assert len(world.calls("cuModuleLoadData")) == 6
    assert len(world.calls("cuDevicePrimaryCtxRetain")) == 2
    assert world.driver.standin_context_depth() == 0


@scenario
def kernels_are_left_out_in_a_block_and_given_up_for_good(world: World) -> None:
    case = half("plain")
    world.compute(case)
    with cuda.disabled():
        assert torch.equal(world.compute(case), attend(reference, case))
    world.compute(case)
    assert len(world.launches) == 2
    with warned() as caught:
        cuda.give_up(torch.device("cuda:1"), "wrong")
        cuda.give_up(torch.device("cuda:0"), "wrong")
    (warning,) = [str(one.message) for one in caught]
    assert "plain float16" in warning and "wrong" in warning
    assert torch.equal(world.compute(case), attend(reference, case))
    assert list(ops.kernel_failures("cuda").values()) == ["wrong"]
    assert_right(world.compute(half("shared keys")), half("shared keys"))
    assert len(world.launches) == 3


@scenario
def sums_are_normalised_on_either_device(world: World) -> None:
    tokens, norm = torch.randn(3, 41, 128), nn.LayerNorm(128).requires_grad_(False)
    x, residual = torch.randn(3, 30, 128), tokens[:, 11:]
    exact = norm.double()(x.double() + residual.double())
    norm.float()
    for world.index in (0, 1):
        assert_close(world.normalise(x, residual, norm), exact, 1e-5)
    # Two rows a warp, eight warps a block; three images.
    assert world.launches == [(2, 3, STREAM, device) for device in (0, 1)]
    assert world.driver.standin_context_depth() == 0


@scenario
def a_norm_that_the_driver_refuses_is_computed_by_torch(world: World) -> None:
    x, residual, norm = torch.randn(2, 5, 128), torch.randn(2, 5, 128), nn.LayerNorm(128)
    norm.requires_grad_(False)
    world.fail("cuModuleGetFunction", NOT_FOUND)
    with warned() as caught:
        outputs = [world.normalise(x, residual, norm) for _ in range(2)]
    assert all(torch.equal(output, norm(x + residual)) for output in outputs)
    (warning,) = [str(one.message) for one in caught]
    assert "sum and layer norm float32" in warning and "CUDA_ERROR_NOT_FOUND" in warning
    assert list(ops.kernel_failures("cuda")) == ["sum and layer norm float32, 128 channels"]


@scenario
def a_launch_is_three_calls_once_the_kernel_is_loaded(world: World) -> None:
    world.compute(half())
    first = len(world.calls())
    world.compute(half())
    assert world.calls()[first:] == ["cuCtxPushCurrent_v2", "cuLaunchKernel", "cuCtxPopCurrent_v2"]


@scenario
def code_is_loaded_again_with_the_memory_that_torch_keeps(world: World) -> None:
    world.fail("cuModuleLoadData", OUT_OF_MEMORY)
    with pytest.raises(torch.OutOfMemoryError, match="cuModuleLoadData"):
        world.compute(half())
    assert (world.emptied, len(world.calls("cuModuleLoadData"))) == (1, 2)
    world.recover()
    assert_right(world.compute(half()), half())
    assert ops.kernel_failures("cuda") == {}


@scenario
def a_launch_without_memory_is_an_error_of_its_batch_alone(world: World) -> None:
    world.compute(half())
    world.fail("cuLaunchKernel", OUT_OF_MEMORY)
    with pytest.raises(torch.OutOfMemoryError, match="cuLaunchKernel"):
        world.compute(half())
    world.recover()
    assert_right(world.compute(half()), half())
    assert len(world.launches) == 2
    assert world.driver.standin_context_depth() == 0


@scenario
def code_that_the_driver_refuses_turns_off_one_kernel(world: World) -> None:
    world.code = b"no machine code, but of a usual length"
    with warned() as caught:
        outputs = [world.compute(half("plain")) for _ in range(3)]
    assert all(torch.equal(output, attend(reference, half("plain"))) for output in outputs)
    (warning,) = [str(one.message) for one in caught]
    assert "plain float16" in warning and "CUDA_ERROR_INVALID_IMAGE" in warning
    world.code = CODE
    assert_right(world.compute(half("shared keys")), half("shared keys"))
    assert len(world.launches) == 1
    assert ops.implementation_name("cuda") == "cuda+reference"
    (name,) = ops.kernel_failures("cuda")
    assert name == str(variant_of_case(half("plain")))
    assert ops.kernel_failures("cuda:1") == {}


@scenario
def a_launch_that_the_driver_refuses_turns_off_one_kernel(world: World) -> None:
    world.compute(half("plain"))
    world.fail("cuLaunchKernel", NO_RESOURCES)
    with warned() as caught:
        outputs = [world.compute(half("plain")) for _ in range(3)]
    assert all(torch.equal(output, attend(reference, half("plain"))) for output in outputs)
    assert len(caught) == 1
    world.recover()
    assert_right(world.compute(half("shared keys")), half("shared keys"))
    assert len(world.launches) == 2
    assert ops.implementation_name("cuda") == "cuda+reference"


@scenario
def a_lost_context_is_an_error_and_never_the_reference(world: World) -> None:
    world.compute(half())
    world.fail("cuLaunchKernel", ILLEGAL_ADDRESS)
    with warned() as caught:
        for case in (half(), half(), half("plain")):
            with pytest.raises(RuntimeError, match=r"\(700\)"):
                world.compute(case)
    assert caught == []
    assert ops.kernel_failures("cuda") == {}
    assert world.driver.standin_context_depth() == 0


@scenario
def a_failed_capture_is_an_error_and_the_kernel_stays(world: World) -> None:
    world.compute(half())
    world.fail("cuLaunchKernel", CAPTURE_INVALIDATED)
    with pytest.raises(RuntimeError, match="CAPTURE_INVALIDATED"):
        world.compute(half())
    world.recover()
    assert_right(world.compute(half()), half())
    assert ops.implementation_name("cuda") == "cuda"


class DriverCard(StandInCard):
    """A card that is lost when the driver says so."""

    def wait(self) -> None:
        """See `Card.wait`."""
        if ctypes.CDLL("libcuda.so.1").cuCtxSynchronize() != 0:
            raise RuntimeError("an illegal memory access was encountered")


@scenario
def a_recording_that_loses_the_context_is_reported_with_its_shape(world: World) -> None:
    graphs, one, two = CudaGraphs(DriverCard(), 8), BatchShape((9, 7), 1), BatchShape((9, 7), 2)
    assert graphs.record(one, lambda: world.compute(half()))
    world.fail("cuLaunchKernel", ILLEGAL_ADDRESS, calls_before=1)  # not in the run before
    with pytest.raises(DeviceLost, match=r"\(700\)") as lost:
        graphs.record(two, lambda: world.compute(half()))
    assert (lost.value.shape, lost.value.recorded) == (two, 1)


@scenario
def a_recording_that_fails_and_leaves_the_context_ends_the_recording(world: World) -> None:
    graphs, shape = CudaGraphs(DriverCard(), 8), BatchShape((9, 7), 1)
    world.fail("cuLaunchKernel", CAPTURE_INVALIDATED, calls_before=1)
    assert not graphs.record(shape, lambda: world.compute(half()))
    world.recover()
    assert_right(graphs.run(shape, lambda: world.compute(half())), half())


@scenario
def a_device_that_the_driver_lacks_is_refused(world: World) -> None:
    world.index = 2
    with warned() as caught:
        output = world.compute(half())
    assert torch.equal(output, attend(reference, half()))
    assert "CUDA_ERROR_INVALID_DEVICE" in str(caught[0].message)
    world.index = 1
    assert_right(world.compute(half()), half())


@scenario
def a_driver_without_a_function_is_refused(world: World) -> None:
    os.environ["STANDIN_HIDDEN"] = "cuModuleLoadData"
    with warned() as caught:
        output = world.compute(half())
    assert torch.equal(output, attend(reference, half()))
    assert "no usable cuModuleLoadData" in str(caught[0].message)
    assert ops.implementation_name("cuda") == "reference"


@scenario
def a_failure_to_compile_turns_off_one_kernel(world: World) -> None:
    def compiled(variant: Variant) -> bytes:
        if variant.kind == "plain":
            raise BuildError("NVRTC refused the kernel")
        return CODE

    world.compile_as(compiled)
    with warned() as caught:
        for _ in range(2):
            world.compute(half("plain"))
            assert_right(world.compute(half()), half())
    assert len(caught) == 1
    assert "NVRTC refused" in ops.kernel_failures("cuda")[str(variant_of_case(half("plain")))]
    assert len(world.launches) == 2


def main() -> None:
    """Runs every scenario in a fork of this process."""
    torch.set_num_threads(1)  # threads do not survive a fork
    warp = HostWarp(Path(sys.argv[1]))
    for name, function in SCENARIOS.items():
        sys.stdout.flush()
        if os.fork() == 0:
            try:
                function(World(warp))
                failure = ""
            except BaseException:
                failure = traceback.format_exc()
            print(json.dumps({"name": name, "failure": failure}), flush=True)
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    main()
