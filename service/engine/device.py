"""The `Device` protocol: what runs an engine's batches (torch, or a stand-in in tests)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from model.detections import Detections
from model.weights.info import ModelInfo


@dataclass(frozen=True)
class DeviceResult:
    """What a device found in one batch, and how long each step took."""

    detections: Sequence[Detections]  # one an image, in order
    assemble_ms: float  # pixels -> the padded batch, on the host
    forward_ms: float  # normalisation and the network
    postprocess_ms: float
    copy_ms: float = 0.0  # the batch to the device; 0 where the host is the device


@dataclass(frozen=True)
class BatchShape:
    """A batch by its size alone."""

    padded: tuple[int, int]  # (H, W) of the bucket
    images: int

    @property
    def padded_pixels(self) -> int:
        """Of all its images, padding included."""
        return self.images * self.padded[0] * self.padded[1]


class OutOfDeviceMemory(Exception):
    """The batch did not fit; a smaller one may."""


class Device(Protocol):
    """Runs batches, one at a time."""

    name: str  # the device that was taken: "cpu", "cuda:0"
    model: ModelInfo

    @property
    def implementations(self) -> Mapping[str, str]:
        """Which code does what, now that it is warm; for logs and /v1/models."""
        ...

    def run(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> DeviceResult:
        """Detects in one batch.

        Args:
            images: RGB uint8 [h, w, 3] each, resized; views that are valid during the call only.
            padded: (H, W) of their bucket.
            original_sizes: (H, W) that boxes refer to, one an image.

        Raises:
            OutOfDeviceMemory: where half the batch may fit.
        """
        ...

    def shapes_to_warm(self, max_batch_size: int, max_batch_pixels: int) -> Sequence[BatchShape]:
        """The batches whose first run may be slower than later ones, the usual ones first.

        Args:
            max_batch_size: most images in a batch.
            max_batch_pixels: most padded pixels in a batch of more than one image.
        """
        ...

    def is_broken(self, error: Exception) -> bool:
        """Whether after this error only a new process helps (a sticky CUDA error)."""
        ...


class BatchInFlight(Protocol):
    """A batch that an `OverlappingDevice` computes."""

    def done(self) -> bool:
        """Whether `finish` would not wait."""
        ...

    def finish(self) -> DeviceResult:
        """Waits for the answer; called once.

        Raises:
            Exception: whatever went wrong.
        """
        ...


@runtime_checkable
class OverlappingDevice(Device, Protocol):
    """A device that computes by itself while its host puts the next batch together (a GPU)."""

    def begin(
        self,
        images: Iterable[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> BatchInFlight:
        """Starts a batch, behind the one that may be under way; see `Device.run`.

        Args:
            images: taken one by one, each valid until the next is asked for.
            padded: (H, W) of their bucket.
            original_sizes: (H, W) that boxes refer to, one an image.

        Raises:
            OutOfDeviceMemory: where half the batch may fit.
        """
        ...

    def record(self, shape: BatchShape) -> None:
        """Prepares for more batches of a shape that has just run in the warm-up; never fails."""
        ...
