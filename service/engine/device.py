"""The `Device` protocol: what runs an engine's batches (torch, or a stand-in in tests)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from model.detections import Detections
from model.explanation import Explanation
from model.weights.info import ModelInfo


@dataclass(frozen=True)
class DeviceResult:
    """The detections of one batch, and how long each step took."""

    detections: Sequence[Detections]  # one per image, in order
    assemble_ms: float  # putting the images into the padded batch, on the host
    forward_ms: float  # normalisation and the network
    postprocess_ms: float
    copy_ms: float = 0.0  # copying the batch to the device; 0 if the device is the host


@dataclass(frozen=True)
class BatchShape:
    """The size of a batch."""

    padded: tuple[int, int]  # (H, W) of the shape bucket
    images: int

    @property
    def padded_pixels(self) -> int:
        """Pixels of all images, with padding."""
        return self.images * self.padded[0] * self.padded[1]


class OutOfDeviceMemory(Exception):
    """The batch does not fit into memory; a smaller one may."""


class DeviceLost(Exception):
    """Recording a graph lost the device: only a new process can use it again.

    Args:
        reason: the error that showed it.
        shape: of the batch that was recorded.
        recorded: number of graphs that were recorded before.
    """

    def __init__(self, reason: str, shape: BatchShape, recorded: int) -> None:
        super().__init__(reason)
        self.shape, self.recorded = shape, recorded


class Device(Protocol):
    """Runs batches, one at a time."""

    name: str  # "cpu", "cuda:0"
    model: ModelInfo

    @property
    def implementations(self) -> Mapping[str, str]:
        """Implementation by part, such as "kernel", after warm-up; for logs and /v1/models."""
        ...

    def run(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> DeviceResult:
        """Runs one batch.

        Args:
            images: RGB uint8 [h, w, 3] each, resized; valid only during the call.
            padded: (H, W) of their shape bucket.
            original_sizes: (H, W) that boxes refer to, one per image.

        Raises:
            OutOfDeviceMemory: if half the batch may fit.
        """
        ...

    def shapes_to_warm(self, max_batch_size: int, max_batch_pixels: int) -> Sequence[BatchShape]:
        """Lists the batch shapes whose first run may be slower, the most frequent ones first.

        Args:
            max_batch_size: maximum number of images in a batch.
            max_batch_pixels: maximum number of padded pixels in a batch of several images.
        """
        ...

    def is_broken(self, error: Exception) -> bool:
        """Whether only a new process can recover from this error (a sticky CUDA error)."""
        ...


class BatchInFlight(Protocol):
    """A batch that an `OverlappingDevice` is computing."""

    def done(self) -> bool:
        """Whether `finish` would return at once."""
        ...

    def finish(self) -> DeviceResult:
        """Waits for the result; called once.

        Raises:
            Exception: if the batch failed.
        """
        ...


@runtime_checkable
class ExplainingDevice(Device, Protocol):
    """A device that can explain detections."""

    def explain(
        self,
        image: npt.NDArray[np.uint8],
        padded: tuple[int, int],
        original_size: tuple[int, int],
        detection: Detections,
    ) -> Explanation:
        """Runs one image again and explains a detection.

        Args:
            image: as one of `run`.
            padded: likewise.
            original_size: likewise.
            detection: one row of the image's result.
        """
        ...


@runtime_checkable
class OverlappingDevice(Device, Protocol):
    """A device that computes one batch while its host assembles the next (a GPU)."""

    def begin(
        self,
        images: Iterable[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> BatchInFlight:
        """Starts a batch, while the previous one may still run; see `Device.run`.

        Args:
            images: read one by one, each valid until the next one is read.
            padded: (H, W) of their shape bucket.
            original_sizes: (H, W) that boxes refer to, one per image.

        Raises:
            OutOfDeviceMemory: if half the batch may fit.
        """
        ...

    def record(self, shape: BatchShape) -> None:
        """Prepares for more batches of a shape that was just warmed up.

        Raises:
            DeviceLost: if that made the device unusable; other failures are not raised.
        """
        ...
