"""The engine's first runs, before it reports that it is ready: load -> warm up -> Hello.

The first run of a shape is slow: memory is allocated, kernels are compiled, plans are made. The
warm-up runs the shapes before requests do. Its time is limited, so that a start does not take
minutes; for a shape that is left out only the first image takes longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from service.engine.device import BatchShape, Device, OutOfDeviceMemory, OverlappingDevice

# Unless `warm_up_seconds` is set. On a CPU the first run of a shape is only a little slower.
CPU_LIMIT_SECONDS = 5.0
GPU_LIMIT_SECONDS = 60.0
_GREY = 127


@dataclass(frozen=True)
class WarmUpLimits:
    """Limits of the warm-up; see the settings of the same names."""

    warm_up_seconds: float | None  # None: depends on the device
    max_batch_size: int
    max_batch_pixels: int

    def seconds_on(self, device: Device) -> float:
        """For how long new shapes are started; the first one always runs."""
        if self.warm_up_seconds is not None:
            return self.warm_up_seconds
        return GPU_LIMIT_SECONDS if device.name.startswith("cuda") else CPU_LIMIT_SECONDS


@dataclass(frozen=True)
class WarmUp:
    """What the warm-up did."""

    seconds: float
    shapes: int  # number that were run
    left_out: int  # number that were not, for lack of time or memory


def warm_up(
    device: Device, limits: WarmUpLimits, clock: Callable[[], float] = time.monotonic
) -> WarmUp:
    """Runs the shapes of `Device.shapes_to_warm`, in their order, until the time is over.

    Batches that do not fit into memory are left out: the edge halves such batches.

    Raises:
        OutOfDeviceMemory: if not even one image fits.
        DeviceLost: if recording a graph lost the device.
        Exception: any other error of the device.
    """
    started = clock()
    limit = limits.seconds_on(device)
    shapes = device.shapes_to_warm(limits.max_batch_size, limits.max_batch_pixels)
    run = 0
    for index, shape in enumerate(shapes):
        if index > 0 and clock() - started >= limit:
            break
        run += _run(device, shape)
    return WarmUp(clock() - started, run, len(shapes) - run)


def _run(device: Device, shape: BatchShape) -> bool:
    """Runs one batch of grey images; returns False if it does not fit into memory."""
    grey = np.full((*shape.padded, 3), _GREY, dtype=np.uint8)
    try:
        device.run([grey] * shape.images, shape.padded, [shape.padded] * shape.images)
    except OutOfDeviceMemory:
        if shape.images == 1:
            raise
        return False
    if isinstance(device, OverlappingDevice):
        device.record(shape)
    return True
