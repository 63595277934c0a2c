"""A device that sleeps, for tests and benchmarks of everything around the network.

A batch of n images takes base + per_image x n milliseconds. The detections of an image are a pure
function of its pixels, so that a client can recognise its own result. An image whose top left
pixel has the colour of a fault triggers that fault. Needs no torch and no pytest.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.config import VARIANTS
from model.detections import Detections
from model.explanation import Explanation, SampledPoints
from model.labels import CODE_LABELS
from model.weights.info import ModelInfo
from service.engine.device import BatchInFlight, BatchShape, DeviceLost, DeviceResult
from service.ipc.messages import Start

FAKE_MODEL = ModelInfo(
    name="fake",
    version="000000000000",
    config=VARIANTS["lite-dino-efficientnet-lite0"],
    labels=CODE_LABELS,
    score_threshold=0.5,
    description="A sleeping device: its detections are a function of the pixels, not of the scene.",
)

_MOST_DETECTIONS = 5
_SAMPLE_STEP = 16  # pixels; the device should sleep, not compute
_SIDE = 0.25  # of a box, relative to the image
_GATE_POLL_SECONDS = 0.005
_MEMORY_CHUNK_BYTES = 8 * 1024 * 1024
_MOST_MEMORY_CHUNKS = 256  # 2 GiB, in case nothing kills the process


class FakeFault(RuntimeError):
    """Raised for an image of the error colour, and for any image after one of the sticky colour."""


@dataclass(frozen=True)
class FakeDeviceSpec:
    """How the fake device behaves; colours are rrggbb, None = no such fault."""

    base_ms: float = 1.0
    per_image_ms: float = 1.0
    start_ms: float = 0.0  # to load the model
    explain_ms: float = 0.0  # to explain a detection, in addition to its batch
    crash_colour: str | None = None  # kills the engine process
    error_colour: str | None = None  # raises FakeFault
    hang_colour: str | None = None  # never returns
    sticky_colour: str | None = None  # raises FakeFault, also for every later batch
    memory_colour: str | None = None  # takes memory until the process is killed
    start_gate: str | None = None  # path; loading waits while this file exists
    batch_gate: str | None = None  # path; each batch waits while this file exists
    graphs: int = 0  # shapes that a graph is recorded for, up to `Start.max_cuda_graphs`
    lost_at_graph: int | None = None  # recording that one (from 0) loses the device


class FakeDevice:
    """Sleeps, then returns `fake_detections` for each image."""

    name = "fake"

    def __init__(self, spec: FakeDeviceSpec) -> None:
        """Sleeps for `spec.start_ms` and waits for `spec.start_gate`."""
        self.model = FAKE_MODEL
        self.implementations: Mapping[str, str] = {"kernel": "fake"}
        self._spec = spec
        self._lost = False  # as a CUDA context is after an illegal address
        time.sleep(spec.start_ms / 1000)
        _wait_while_exists(spec.start_gate)

    def run(
        self,
        images: Sequence[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> DeviceResult:
        """Sleeps as long as the batch takes; see `service.engine.device.Device.run`.

        Raises:
            FakeFault: for an image of the error colour, and for any image once there was one
                of the sticky colour.
        """
        _wait_while_exists(self._spec.batch_gate)
        started = time.monotonic()
        self._trigger_faults(images)
        found = [
            fake_detections(image, size) for image, size in zip(images, original_sizes, strict=True)
        ]
        budget = (self._spec.base_ms + self._spec.per_image_ms * len(images)) / 1000
        time.sleep(max(0.0, started + budget - time.monotonic()))
        forward_ms = (time.monotonic() - started) * 1000
        return DeviceResult(found, assemble_ms=0.0, forward_ms=forward_ms, postprocess_ms=0.0)

    def explain(
        self,
        image: npt.NDArray[np.uint8],
        padded: tuple[int, int],
        original_size: tuple[int, int],
        detection: Detections,
    ) -> Explanation:
        """Points in the centre of the detection; see `ExplainingDevice.explain`."""
        time.sleep(self._spec.explain_ms / 1000)
        (left, top, right, bottom) = detection.boxes_xyxy[0].tolist()
        box, centre = (left, top, right, bottom), ((left + right) / 2, (top + bottom) / 2)
        xy, weights = np.full((1, 4, 1, 2), centre), np.full((1, 4, 1), 0.25)
        decoder = SampledPoints("decoder", 1, 1, True, box, xy, weights)
        encoder = SampledPoints("encoder", 1, 1, True, centre, xy, weights)
        label = self.model.labels[int(detection.labels[0])]
        score = float(detection.scores[0])
        return Explanation(label, score, box, 0, 0, (8, 16, 32, 64), decoder, encoder)

    def shapes_to_warm(self, max_batch_size: int, max_batch_pixels: int) -> Sequence[BatchShape]:
        """None: the first batch of a shape is as fast as any other."""
        return ()

    def is_broken(self, error: Exception) -> bool:
        """Never: a fault either leaves the device usable or ends the process."""
        return False

    def _trigger_faults(self, images: Sequence[npt.NDArray[np.uint8]]) -> None:
        colours = {image[0, 0].tobytes().hex() for image in images}
        if _contains(self._spec.crash_colour, colours):
            os.kill(os.getpid(), signal.SIGKILL)
        if _contains(self._spec.hang_colour, colours):
            threading.Event().wait()
        if _contains(self._spec.memory_colour, colours):
            _take_memory_until_killed()
        self._lost |= _contains(self._spec.sticky_colour, colours)
        if self._lost or _contains(self._spec.error_colour, colours):
            raise FakeFault(
                "the fake device is lost" if self._lost else "an image of the error colour"
            )


class _FinishedBatch:
    """A batch that ended when it began."""

    def __init__(self, result: DeviceResult) -> None:
        self._result = result

    def done(self) -> bool:
        return True

    def finish(self) -> DeviceResult:
        return self._result


class RecordingFakeDevice(FakeDevice):
    """A fake device that records graphs, as a GPU does, and may lose its context with one."""

    def __init__(self, spec: FakeDeviceSpec, max_graphs: int) -> None:
        super().__init__(spec)
        self._max_graphs, self._recorded = max_graphs, 0

    def begin(
        self,
        images: Iterable[npt.NDArray[np.uint8]],
        padded: tuple[int, int],
        original_sizes: Sequence[tuple[int, int]],
    ) -> BatchInFlight:
        return _FinishedBatch(self.run(list(images), padded, original_sizes))

    def record(self, shape: BatchShape) -> None:
        if self._recorded >= self._max_graphs:
            return
        if self._recorded == self._spec.lost_at_graph:
            raise DeviceLost("an illegal memory access", shape, self._recorded)
        self._recorded += 1
        self.implementations = {"kernel": "fake", "cuda_graphs": str(self._recorded)}

    def shapes_to_warm(self, max_batch_size: int, max_batch_pixels: int) -> Sequence[BatchShape]:
        return [BatchShape((64, 64), 1 + number) for number in range(self._spec.graphs)]

    def is_broken(self, error: Exception) -> bool:
        """A sticky fault is one of the context."""
        return self._lost


def open_fake_device(start: Start) -> FakeDevice:
    """The device factory; `Start.device_options` are the fields of a `FakeDeviceSpec`."""
    spec = FakeDeviceSpec(**start.device_options)
    return RecordingFakeDevice(spec, start.max_cuda_graphs) if spec.graphs else FakeDevice(spec)


def _wait_while_exists(gate: str | None) -> None:
    while gate is not None and Path(gate).exists():
        time.sleep(_GATE_POLL_SECONDS)


def _contains(colour: str | None, colours: set[str]) -> bool:
    return colour is not None and colour.lower() in colours


def _take_memory_until_killed() -> None:
    """Fills memory as a leak would, at most 2 GiB, and then waits to be killed."""
    chunks = []
    for _ in range(_MOST_MEMORY_CHUNKS):
        chunks.append(np.ones(_MEMORY_CHUNK_BYTES, dtype=np.uint8))  # ones: every page is touched
        time.sleep(0.001)
    threading.Event().wait()


def fake_detections(pixels: npt.NDArray[np.uint8], original_size: tuple[int, int]) -> Detections:
    """The detections of the fake device for one image.

    Args:
        pixels: uint8 [h, w, 3], resized.
        original_size: (H, W) that boxes refer to.

    Returns:
        One to five detections, best score first; their number, classes and boxes follow from
        the size and the mean colour of a sample of the pixels.
    """
    sample = pixels[::_SAMPLE_STEP, ::_SAMPLE_STEP]
    red, green, blue = (float(mean) for mean in sample.mean(axis=(0, 1)))
    count = 1 + round(red + green + blue) % _MOST_DETECTIONS
    rows = np.arange(count, dtype=np.float32)
    left = np.full(count, red / 255 * (1 - _SIDE), dtype=np.float32)
    top = np.full(count, green / 255 * (1 - _SIDE), dtype=np.float32)
    boxes = np.stack((left, top, left + _SIDE, top + _SIDE), axis=-1)
    height, width = original_size
    scale = np.array((width, height, width, height), dtype=np.float32)
    return Detections(
        scores=(0.95 - 0.1 * rows).astype(np.float32),
        labels=(round(blue) + rows.astype(np.int64)) % len(FAKE_MODEL.labels),
        boxes_xyxy=boxes * scale,
    )
