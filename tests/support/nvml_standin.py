"""A stand-in for the NVML module: two GPUs; the second reports no utilisation."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


class NVMLError(Exception):
    """The error type of the real module."""


@dataclass(frozen=True)
class Memory:
    used: int
    total: int


@dataclass(frozen=True)
class Utilization:
    gpu: int


lost: set[int] = set()  # devices whose driver calls fail


def nvmlInit() -> None:
    """Succeeds."""


def nvmlDeviceGetCount() -> int:
    return 2


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetMemoryInfo(device: int) -> Memory:
    if device in lost:
        raise NVMLError("GPU is lost")
    return Memory(used=(device + 1) * GIB, total=80 * GIB)


def nvmlDeviceGetUtilizationRates(device: int) -> Utilization:
    if device == 1:
        raise NVMLError("Not Supported")
    return Utilization(gpu=37)
