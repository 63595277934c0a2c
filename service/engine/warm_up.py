"""The engine's first runs, before it says that it is ready: load -> warm up -> Hello.

What is slow only the first time (memory from the system, compiled kernels, plans made for a shape;
on a GPU much more) is over before anyone waits for it. It is bounded: a start must not take
minutes, and a shape that was left out costs its first image a little more, no wrong answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from service.engine.device import BatchShape, Device, OutOfDeviceMemory, OverlappingDevice

# Where no setting says otherwise. On a CPU a shape's first run costs little more than its second.
CPU_LIMIT_SECONDS = 5.0
GPU_LIMIT_SECONDS = 60.0
_GREY = 127


@dataclass(frozen=True)
class WarmUpLimits:
    """What to warm up for; see the settings of the same names."""

    warm_up_seconds: float | None  # None: by the device
    max_batch_size: int
    max_batch_pixels: int

    def seconds_on(self, device: Device) -> float:
        """For how long new shapes are begun; the first is run whatever the limit."""
        if self.warm_up_seconds is not None:
            return self.warm_up_seconds
        return GPU_LIMIT_SECONDS if device.name.startswith("cuda") else CPU_LIMIT_SECONDS


@dataclass(frozen=True)
class WarmUp:
    """What was done."""

    seconds: float
    shapes: int  # that were run
    left_out: int  # shapes for which there was no time or no memory


def warm_up(
    device: Device, limits: WarmUpLimits, clock: Callable[[], float] = time.monotonic
) -> WarmUp:
    """Runs the shapes that the device wants run, in its order, until the time is over.

    A batch that finds no memory is left out: the edge halves such batches when they come.

    Raises:
        OutOfDeviceMemory: where not even one image fits.
        Exception: whatever else keeps the network from running.
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
    """Runs one batch of grey images; False where it found no memory."""
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
