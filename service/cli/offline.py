"""Detection in this process, without a service: the rooms of POST /detect, called in a row.

file -> images.decode_image -> Device.run -> Selection.apply -> FileResult -> encoding
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

from model.geometry import padded_size
from model.images.decode import DecodedImage, ImageLimits, decode_image
from model.weights.info import resolve_model
from service.cli.inputs import NoPhoto, Photo
from service.core.encoding import FileResult, ItemError
from service.core.selection import resolve_options
from service.engine.device import Device, DeviceResult
from service.errors import DetectionError, InferenceFailed, InvalidImage
from service.ipc.slots import largest_bucket_pixels
from service.rest.problems import item_error
from service.settings import Settings
from service.types import DetectOptions, DetectResult, StageTimings


def open_device(settings: Settings) -> Device:
    """Loads the model into this process.

    Raises:
        CheckpointError: for a model that is not there or cannot be used.
        RuntimeError: for a device that is not there.
    """
    from service.engine.torch_device import TorchDevice  # noqa: PLC0415

    path = resolve_model(settings.model, settings.model_cache_dir)
    return TorchDevice(path, settings.device, settings.engine_threads, settings.precision)


class OfflineDetector:
    """Detects in one photo after the other.

    Args:
        device: runs the model; a batch is one photo.
        limits: of a photo, as the service has them.
        options: for every photo.
        on_answer: called with each photo, its bytes and its answer.
        show_tracebacks: on stderr, for failures of the model itself.

    Raises:
        InvalidOptions: for options that this model does not have.
    """

    def __init__(
        self,
        device: Device,
        limits: ImageLimits,
        options: DetectOptions,
        *,
        on_answer: Callable[[Photo, bytes, DetectResult], None] | None = None,
        show_tracebacks: bool = False,
    ) -> None:
        self._selection = resolve_options(options, device.model)
        self._largest_bucket = largest_bucket_pixels(device.model.config)
        self._device = device
        self._limits = limits
        self._on_answer = on_answer
        self._show_tracebacks = show_tracebacks

    @property
    def labels(self) -> tuple[str, ...]:
        """The model's class names."""
        return self._device.model.labels

    def detect(self, photo: Photo, request_id: str) -> FileResult:
        """What is in a photo, or why that cannot be said; one bad photo stops nothing."""
        try:
            return FileResult(photo.name, self._detect(photo, request_id))
        except NoPhoto as error:
            problem = ItemError("unreadable_file", "The file cannot be read", str(error))
            return FileResult(photo.name, error=problem)
        except DetectionError as error:
            return FileResult(photo.name, error=item_error(error))

    def _detect(self, photo: Photo, request_id: str) -> DetectResult:
        started = time.perf_counter()
        data = photo.read()
        result = self._answer(data, request_id, started)
        if self._on_answer is not None:
            self._on_answer(photo, data, result)
        return result

    def _answer(self, data: bytes, request_id: str, started: float) -> DetectResult:
        read = time.perf_counter()
        model = self._device.model
        decoded = decode_image(data, model.config, self._limits)
        padded = self._padded(decoded)
        ready = time.perf_counter()
        answer = self._run(decoded, padded)
        answered = time.perf_counter()
        kept = self._selection.apply(answer.detections[0])
        done = time.perf_counter()
        height, width = decoded.original_size
        return DetectResult(
            model_name=model.name,
            model_version=model.version,
            width=width,
            height=height,
            label_names=model.labels,
            detections=kept,
            timings=StageTimings(
                read=_ms(read - started),
                decode=_ms(ready - read),
                queue=0.0,
                assemble=answer.assemble_ms,
                copy=answer.copy_ms,
                forward=answer.forward_ms,
                postprocess=answer.postprocess_ms + _ms(done - answered),
                total=_ms(done - started),
            ),
            request_id=request_id,
        )

    def _padded(self, decoded: DecodedImage) -> tuple[int, int]:
        """The bucket (H, W) of a picture; what the service refuses is refused here too."""
        height, width = decoded.pixels.shape[:2]
        padded = padded_size(height, width, self._device.model.config.bucket_stride)
        if padded[0] * padded[1] > self._largest_bucket:
            original = decoded.original_size
            raise InvalidImage(
                f"the image is too elongated: {original[1]} x {original[0]} pixels become "
                f"{width} x {height} for the network"
            )
        return padded

    def _run(self, decoded: DecodedImage, padded: tuple[int, int]) -> DeviceResult:
        """Runs the model on one picture; its failure becomes that picture's error."""
        try:
            return self._device.run([decoded.pixels], padded, [decoded.original_size])
        except Exception as error:
            if self._show_tracebacks:
                traceback.print_exc()
            raise InferenceFailed(f"{type(error).__name__}: {error}") from error


def _ms(seconds: float) -> float:
    return seconds * 1000
