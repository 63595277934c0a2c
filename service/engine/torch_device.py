"""The device that runs a model with torch, on a CPU or a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from model.detections import Detections
from model.explain import ExplainedImage
from model.explanation import Explanation
from model.geometry import reachable_buckets
from model.ops import implementation_name, kernel_failures
from service.engine.device import BatchShape, DeviceResult, OutOfDeviceMemory
from service.engine.load import load_predictor

_NO_HOST_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # torch has no exception for it


@contextmanager
def translate_out_of_memory(wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Re-raises errors of memory that ran out as `OutOfDeviceMemory`.

    Args:
        wait: waits until the device no longer uses memory of the batch.

    Raises:
        OutOfDeviceMemory: if half the batch may fit.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        wait()
        torch.cuda.empty_cache()
        raise OutOfDeviceMemory(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or _NO_HOST_MEMORY in str(error):
            raise OutOfDeviceMemory("the host has no memory left") from error
        raise


class TorchDevice:
    """Runs a model with torch, one batch at a time: engines on a CPU, and offline commands."""

    def __init__(
        self, path: Path | str, device: str, threads: int, precision: str = "auto"
    ) -> None:
        """Loads the model; see `load_predictor` for arguments and errors."""
        self._predictor, self.model = load_predictor(path, device, threads, precision)
        self.name = str(self._predictor.device)
        self._facts = {
            "precision": self._predictor.precision,
            "torch": torch.__version__,
            "threads": str(torch.get_num_threads()),
        }

    @property
    def implementations(self) -> Mapping[str, str]:
        """See `service.engine.device.Device`; GPU kernels that do not work are named."""
        device = self._predictor.device
        facts = {"kernel": implementation_name(device), **self._facts}
        if failures := kernel_failures(device):
            facts["kernel_failures"] = "; ".join(f"{one}: {why}" for one, why in failures.items())
        return facts

    def run(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> DeviceResult:
        """Detects in one batch; see `service.engine.device.Device.run`.

        Raises:
            OutOfDeviceMemory: if half the batch may fit.
        """
        detections: list[Detections] = []
        seconds = np.zeros(4)
        with translate_out_of_memory():
            for part in self._predictor.portions(len(images)):
                found, taken = self._run_together(images[part], padded, original_sizes[part])
                detections += found
                seconds += taken
        assemble_ms, copy_ms, forward_ms, postprocess_ms = (seconds * 1000).tolist()
        return DeviceResult(detections, assemble_ms, forward_ms, postprocess_ms, copy_ms)

    def _run_together(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> tuple[list[Detections], tuple[float, float, float, float]]:
        """Runs one portion of a batch; also returns the seconds of its four steps."""
        predictor, started = self._predictor, time.monotonic()
        host = predictor.stack(images, padded)
        assembled = time.monotonic()
        batch = predictor.copy(*host)
        copied = assembled if predictor.device.type == "cpu" else self._synchronised()
        output = predictor.forward(*predictor.normalise(*batch))
        computed = self._synchronised()
        found = predictor.postprocess(output, original_sizes)
        steps = (started, assembled, copied, computed, time.monotonic())
        assemble, copy, forward, postprocess = np.diff(steps).tolist()
        return found, (assemble, copy, forward, postprocess)

    def explain(
        self,
        image: npt.NDArray[np.uint8],
        padded: tuple[int, int],
        original_size: tuple[int, int],
        detection: Detections,
    ) -> Explanation:
        """Runs one image again and explains a detection; see `ExplainingDevice.explain`.

        Raises:
            OutOfDeviceMemory: if memory ran out.
        """
        with translate_out_of_memory():
            explained = ExplainedImage(self._predictor, image, padded, original_size)
            return explained.explain(explained.closest_to(detection), self.model.labels)

    def shapes_to_warm(self, max_batch_size: int, max_batch_pixels: int) -> Sequence[BatchShape]:
        """Every shape bucket of the model, first with one image, then with every batch size."""
        config = self.model.config
        buckets = reachable_buckets(config.shortest_side, config.longest_side, config.bucket_stride)
        most = max_batch_size if self._predictor.runs_batches_whole else 1
        return [
            BatchShape(bucket, images)
            for images in range(1, most + 1)
            for bucket in buckets
            if images == 1 or images * bucket[0] * bucket[1] <= max_batch_pixels
        ]

    def is_broken(self, error: Exception) -> bool:
        """Whether the CUDA context is lost: then every later call fails, too."""
        if not self.name.startswith("cuda"):
            return False
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False

    def _synchronised(self) -> float:
        """Waits for the device; returns the time, monotonic seconds."""
        if self._predictor.device.type == "cuda":
            torch.cuda.synchronize(self._predictor.device)
        return time.monotonic()
