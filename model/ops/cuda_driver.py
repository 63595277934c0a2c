"""The CUDA driver, through `cuda-bindings`: loads machine code and launches kernels.

torch uses the primary context of a device, so kernels are loaded and launched in that one. What an
error of the driver means for the caller:

    out of memory                      torch.OutOfMemoryError: a smaller batch may fit
    this kernel does not work here     KernelRefused: other kernels may work
    any other                          RuntimeError: a lost context, a failed capture, for instance
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar

import torch

_OUT_OF_MEMORY = 2
# Values of CUresult in cuda.h after which the context is usable: wrong values, images or handles,
# no code for this GPU, refused PTX, names that are not found, too many resources, not supported;
# and before there is a context: no driver, no device, a driver that does not fit.
_REFUSALS = frozenset(
    {1, 3, 34, 100, 101, 200, 209, 218, 221, 222, 223, 224, 300, 301, 302, 400, 500, 701, 801}
    | {803, 804}
)


class KernelRefused(Exception):
    """The driver cannot load or launch this kernel on this GPU; the message says why."""


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched."""

    grid: tuple[int, int]  # blocks along x and y
    threads: int  # of a block
    stream: int  # handle of a stream of the device


class _Contexts:
    """The primary contexts of the devices in use, by index."""

    lock = threading.Lock()
    retained: ClassVar[dict[int, object]] = {}


def load(code: bytes, name: bytes, index: int) -> object:
    """Loads a kernel into the context of a device.

    Args:
        code: machine code or PTX.
        name: of the kernel in it.
        index: of the device, as torch counts.

    Returns:
        A handle for `launch`.

    Raises:
        KernelRefused: for code that the driver refuses, and without a usable driver.
        torch.OutOfMemoryError: if the GPU has no memory for the code.
        RuntimeError: if the context is lost.
    """
    with _context(index):
        (module,) = _call("cuModuleLoadData", code)
        (function,) = _call("cuModuleGetFunction", module, name)
    return function


def launch(kernel: object, argument: ctypes.Structure, how: Launch, index: int) -> None:
    """Launches a kernel that has one parameter, a struct, and does not wait for it.

    Raises:
        KernelRefused: if the driver cannot launch this kernel on this GPU.
        torch.OutOfMemoryError: if the GPU has no memory for the launch.
        RuntimeError: for any other error, also of earlier work.
    """
    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
    sizes = (*how.grid, 1, how.threads, 1, 1, 0)
    with _context(index):
        _call("cuLaunchKernel", kernel, *sizes, how.stream, ctypes.addressof(parameters), 0)


@contextmanager
def _context(index: int) -> Iterator[None]:
    """Makes the primary context of a device the current one."""
    context = _Contexts.retained.get(index)
    if context is None:
        with _Contexts.lock:
            _call("cuInit", 0)
            (device,) = _call("cuDeviceGet", index)
            (context,) = _call("cuDevicePrimaryCtxRetain", device)
            _Contexts.retained[index] = context
    _call("cuCtxPushCurrent", context)
    try:
        yield
    finally:
        # Fails only after an error that the call in this context has reported.
        with suppress(Exception):
            _call("cuCtxPopCurrent")


def _call(name: str, *arguments: object) -> tuple[object, ...]:
    """Calls a function of the driver; returns what it returns after its status.

    Raises:
        KernelRefused: also if the driver or its Python interface lacks the function.
        torch.OutOfMemoryError: if memory ran out.
        RuntimeError: for any other status.
    """
    try:
        from cuda.bindings import driver  # noqa: PLC0415 - only installed with a CUDA build of torch

        status, *values = getattr(driver, name)(*arguments)
    except Exception as error:  # each version of the bindings has its own
        raise KernelRefused(f"the CUDA driver has no usable {name}: {error}") from error
    if int(status) == _OUT_OF_MEMORY:
        raise torch.OutOfMemoryError(f"the CUDA driver has no memory left for {name}")
    if int(status) in _REFUSALS:
        raise KernelRefused(f"the CUDA driver returned {_named(status)} from {name}")
    if int(status) != 0:
        raise RuntimeError(f"the CUDA driver returned {_named(status)} from {name}")
    return tuple(values)


def _named(status: object) -> str:
    """For messages: "CUDA_ERROR_NOT_FOUND (500)"; versions of the bindings print it in two ways."""
    return f"{getattr(status, 'name', 'status')} ({int(status)})"  # type: ignore[call-overload]
