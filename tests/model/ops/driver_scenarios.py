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
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.gpu import original_msda
from model import ops
from model.native.library import BuildError
from model.ops import cpu, cuda, reference
from model.ops.nvrtc import Variant
from model.ops.padding import without_padding
from model.ops.workloads import Workload, random_inputs
from service.engine.cuda_graphs import CudaGraphs
from service.engine.device import BatchShape, DeviceLost
from tests.model.ops.attention_cases import (
    KINDS,
    Case,
    assert_close,
    attend,
    gradients,
)
from tests.model.ops.driver_world import (
    CAPTURE_INVALIDATED,
    CODE,
    ILLEGAL_ADDRESS,
    NO_RESOURCES,
    NOT_FOUND,
    OUT_OF_MEMORY,
    SCENARIOS,
    STREAM,
    World,
    assert_right,
    half,
    scenario,
    variant_of_case,
    warned,
)
from tests.model.ops.warp_host import HostWarp
from tests.support.standin_card import StandInCard

__all__ = ["SCENARIOS"]


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


def assert_gradients_are_right(found: cpu.InputGradients, case: Case) -> None:
    """The gradients are those of the formula."""
    _, exact = gradients(reference, case, torch.float64)
    named = {field.name: getattr(found, field.name) for field in fields(found)}
    grads = {name: grad for name, grad in named.items() if grad is not None}
    assert grads.keys() == exact.keys()
    for name, grad in grads.items():
        assert_close(grad.float(), exact[name], 4e-3)


def grad_output_of(case: Case) -> Tensor:
    """As `gradients` of attention_cases has it."""
    batch, _, heads, channels = case.value.shape
    size = (batch, case.sampling_offsets.shape[1], heads * channels)
    return torch.randn(size, generator=torch.Generator().manual_seed(1)).to(case.value.dtype)


@scenario
def gradients_of_every_kind_are_computed_on_either_device(world: World) -> None:
    for world.index, exactly in ((0, False), (1, True)):
        torch.use_deterministic_algorithms(exactly)
        for kind in KINDS:
            case = half(kind)
            found = world.differentiate(case, grad_output_of(case))
            assert_gradients_are_right(found, case)
    # Two tiles of 12 queries of 8 heads, 8 rows a warp, 4 warps a block; 2 images.
    assert world.launches == [(6, 2, STREAM, device) for device in (0, 0, 0, 1, 1, 1)]
    assert world.driver.standin_context_depth() == 0


@scenario
def gradients_that_the_driver_refuses_are_computed_by_plain_pytorch(world: World) -> None:
    case = half()
    world.fail("cuLaunchKernel", NO_RESOURCES)
    with warned() as caught:
        for _ in range(2):
            found = world.differentiate(case, grad_output_of(case))
            assert_gradients_are_right(found, case)
    (warning,) = [str(one.message) for one in caught if "GPU kernel" in str(one.message)]
    assert "backward" in warning and "LAUNCH_OUT_OF_RESOURCES" in warning
    world.recover()
    assert_right(world.compute(case), case)  # the forward pass keeps its kernel
    assert len(world.launches) == 1


@scenario
def a_backward_pass_that_loses_the_context_is_an_error(world: World) -> None:
    case = half()
    world.fail("cuLaunchKernel", ILLEGAL_ADDRESS)
    with pytest.raises(RuntimeError, match=r"\(700\)"):
        world.differentiate(case, grad_output_of(case))
    assert ops.kernel_failures("cuda") == {}


@scenario
def padding_is_left_out_by_the_kernel(world: World) -> None:
    case = half()
    first = torch.tensor([[5 / 7, 6 / 9], [3 / 4, 4 / 5], [2 / 3, 1.0], [1.0, 1 / 2]])
    ratios = torch.stack((first, torch.ones_like(first)))
    zeroed = replace(case, value=without_padding(case.value, case.spatial_shapes, ratios))
    assert_right(world.compute(case, ratios), zeroed)
    assert len(world.launches) == 1


@scenario
def inputs_that_are_not_aligned_or_contiguous_are_copied(world: World) -> None:
    case = half()
    moved = {}
    for name, tensor in case.tensors().items():
        shifted = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:]
        moved[name] = shifted.view_as(tensor).copy_(tensor)
    assert_right(world.compute(replace(case, **moved)), case)  # type: ignore[arg-type]
    for name, tensor in case.tensors().items():
        moved[name] = tensor.transpose(0, 1).contiguous().transpose(0, 1)
    assert_right(world.compute(replace(case, **moved)), case)  # type: ignore[arg-type]
    assert len(world.launches) == 2


@scenario
def code_for_the_driver_to_compile_is_loaded(world: World) -> None:
    world.code = b".version 9.0\n.target sm_90\n\0"
    assert_right(world.compute(half()), half())
    assert len(world.launches) == 1


@scenario
def the_baseline_of_the_measurement_is_launched(world: World) -> None:
    shapes = ((9, 7), (5, 4), (3, 3), (2, 1))
    workload = Workload("test", False, shapes, 2, 8, 94)
    seen: list[original_msda.CallStruct] = []
    world.kernel = lambda argument: seen.append(
        original_msda.CallStruct.from_buffer_copy(
            ctypes.string_at(argument, ctypes.sizeof(original_msda.CallStruct))
        )
    )
    vars(original_msda)["compiled"] = lambda _dtype, _capability: CODE
    for world.index in (0, 1):
        original = original_msda.OriginalMsda(workload, random_inputs(workload))
        assert original.run().shape == (2, 94, 256)
        call = seen.pop()
        assert call.output == original.output.data_ptr()
        assert (call.batch, call.tokens, call.heads, call.channels) == (2, 94, 8, 32)
        assert (list(call.height)[:4], list(call.start)[:4]) == ([9, 5, 3, 2], [0, 63, 83, 92])
    # A thread for each channel, 256 in a block.
    assert world.launches == [(2 * 94, 1, STREAM, device) for device in (0, 1)]


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
                world = World(warp)
                function(world)
                failure = "".join(world.problems)
            except BaseException:
                failure = traceback.format_exc()
            print(json.dumps({"name": name, "failure": failure}), flush=True)
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    main()
