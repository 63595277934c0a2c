"""The stand-in driver with torch's functions for devices replaced; see driver_scenarios.py."""

from __future__ import annotations

import ctypes
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from model.ops import cpu, cuda, cuda_backward, cuda_norm, reference
from model.ops.cuda_call import ALIGNMENT_BYTES, variant_of
from model.ops.cuda_norm import NormVariant
from model.ops.nvrtc import Variant
from tests.model.ops import warp_host
from tests.model.ops.attention_cases import (
    Case,
    Kind,
    assert_close,
    attend,
    random_case,
)
from tests.model.ops.warp_host import HostWarp

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
        self.problems: list[str] = []  # of launches, whose exceptions the driver does not pass on
        self.kernel: Variant | NormVariant | Callable[[int], None] | None = None  # that is launched
        kernel = ctypes.CFUNCTYPE(
            None, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_int
        )
        self._kernel = kernel(self._run)  # kept: the driver has only its address
        self.driver.standin_set_kernel(self._kernel)
        replaced: dict[str, Any] = {
            "is_available": lambda: True,
            "current_device": lambda: self.index,
            "get_device_capability": lambda _index: (9, 0),
            "current_stream": lambda _device=None: SimpleNamespace(
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

    def compute(self, case: Case, valid_ratios: Tensor | None = None) -> Tensor:
        """The case by the GPU's path."""
        inputs = replace(warp_host.inputs_of(case), valid_ratios=valid_ratios)
        self.kernel = variant_of(inputs)
        return cuda.forward(inputs)

    def differentiate(self, case: Case, grad_output: Tensor) -> cpu.InputGradients:
        """The gradients of the case's inputs by the GPU's path."""
        inputs = warp_host.inputs_of(case)
        deterministic = torch.are_deterministic_algorithms_enabled()
        self.kernel = variant_of(inputs, backward=True, deterministic=deterministic)
        return cuda_backward.backward(inputs, grad_output, of_reference_points=True)

    def normalise(self, x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
        """The sum with a residual, normalised, by the GPU's path."""
        self.kernel = NormVariant(x.dtype, x.shape[-1])
        return cuda_norm.forward(x, residual, norm.weight, norm.bias, norm.eps)

    def _run(self, argument: int, grid_x: int, grid_y: int, stream: int, device: int) -> None:
        self.launches.append((grid_x, grid_y, stream, device))
        try:
            self._launch(argument, (grid_x, grid_y))
        except Exception:
            self.problems.append(traceback.format_exc())

    def _launch(self, argument: int, grid: tuple[int, int]) -> None:
        kernel = self.kernel
        arrays = {NormVariant: 5, Variant: 8}.get(type(kernel), 4)  # at the struct's beginning
        pointers = (ctypes.c_void_p * arrays).from_address(argument)
        assert not any((one or 0) % ALIGNMENT_BYTES for one in pointers), list(pointers)
        if isinstance(kernel, NormVariant):
            self.warp.add_norm_at(kernel, argument, grid)
        elif isinstance(kernel, Variant):
            self.warp.run_at(kernel, argument, grid)
        else:
            assert kernel is not None
            kernel(argument)

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
    return variant_of(warp_host.inputs_of(case))
