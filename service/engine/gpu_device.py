"""The engine's GPU: a `TorchDevice` whose batches overlap and run as CUDA graphs.

warm-up: run a shape kernel by kernel, record its graph
serving: begin batch n+1 while the GPU computes batch n
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from model.geometry import reachable_buckets, usual_buckets
from service.engine.cuda_card import Card, CudaCard
from service.engine.device import BatchInFlight, BatchShape, DeviceResult
from service.engine.gpu_pipeline import GpuPipeline, PipelineLimits
from service.engine.load import pick_device
from service.engine.torch_device import TorchDevice, translate_out_of_memory
from service.ipc.messages import Start
from service.ipc.slots import largest_bucket_pixels


@dataclass(frozen=True)
class GpuLimits:
    """Maximum sizes of batches, and of recorded graphs; see the settings of these names."""

    max_batch_size: int
    max_batch_pixels: int
    max_cuda_graphs: int


class GpuDevice(TorchDevice):
    """Runs a model on a GPU.

    Args:
        path: see `load_predictor`, also for errors.
        device: "cuda" or "cuda:N".
        threads: see `load_predictor`.
        precision: see `load_predictor`.
        limits: on batches.
        open_card: creates the `Card` of a device.
    """

    def __init__(  # noqa: PLR0913 - options
        self,
        path: Path | str,
        device: str,
        threads: int,
        precision: str,
        limits: GpuLimits,
        *,
        open_card: Callable[[torch.device], Card] = CudaCard,
    ) -> None:
        super().__init__(path, device, threads, precision)
        max_pixels = max(limits.max_batch_pixels, largest_bucket_pixels(self.model.config))
        self._limits = PipelineLimits(limits.max_batch_size, max_pixels)
        card = open_card(self._predictor.device)
        self._pipeline = GpuPipeline(self._predictor, card, self._limits, limits.max_cuda_graphs)

    @property
    def implementations(self) -> Mapping[str, str]:
        """Also the number of batch shapes with a CUDA graph."""
        return {**super().implementations, "cuda_graphs": str(len(self._pipeline.graphs))}

    def run(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> DeviceResult:
        """Runs one batch and waits for it; see `service.engine.device.Device.run`."""
        return self.begin(images, padded, original_sizes).finish()

    def begin(
        self,
        images: Iterable[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> BatchInFlight:
        """Starts a batch; see `service.engine.device.OverlappingDevice.begin`.

        Raises:
            OutOfDeviceMemory: if half the batch may fit.
        """
        with translate_out_of_memory(self._pipeline.wait):  # its copy may still be running
            return self._pipeline.begin(images, padded, original_sizes)

    def record(self, shape: BatchShape) -> None:
        """Records a CUDA graph; see `service.engine.cuda_graphs`, also for `DeviceLost`."""
        self._pipeline.record(shape)

    def shapes_to_warm(self, max_batch_size: int, max_batch_pixels: int) -> Sequence[BatchShape]:
        """The largest batch, then common shape buckets in every batch size, then the others.

        Batches run in few sizes: see `PipelineLimits.batch_sizes`. Graphs share memory: that of the
        first one suffices for all smaller ones. If the time does not suffice for all shapes, a busy
        service needs full batches of common buckets most. The limits are those of the device.
        """
        del max_batch_size, max_batch_pixels
        config = self.model.config
        rule = (config.shortest_side, config.longest_side, config.bucket_stride)
        shapes = [
            BatchShape(bucket, images)
            for bucket in reachable_buckets(*rule)
            for images in reversed(self._limits.batch_sizes(bucket))
        ]
        largest = max(shapes, key=lambda shape: shape.padded_pixels)
        usual = usual_buckets(*rule)
        ordered = sorted(shapes, key=lambda shape: shape.padded not in usual)
        return [largest, *(shape for shape in ordered if shape != largest)]


def open_torch_device(
    path: Path | str, device: str, threads: int, precision: str, limits: GpuLimits
) -> TorchDevice:
    """Opens the device of an engine; see `load_predictor`."""
    if pick_device(device).startswith("cuda"):
        return GpuDevice(path, device, threads, precision, limits)
    return TorchDevice(path, device, threads, precision)


def open_device(start: Start) -> TorchDevice:
    """The device of an engine process; `service.build` names this function in `Start`."""
    limits = GpuLimits(start.max_batch_size, start.max_batch_pixels, start.max_cuda_graphs)
    return open_torch_device(start.model_path, start.device, start.threads, start.precision, limits)
