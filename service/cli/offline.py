"""Detects in images in this process, with the same stages as POST /detect.

file -> decode_image -> Device.run -> make_result -> FileResult -> encoding
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

from model.geometry import padded_size
from model.images.decode import DecodedImage, ImageLimits, decode_image
from model.weights.info import ModelInfo, resolve_model
from service.cli.inputs import ImageFile, UnreadableFile
from service.core.encoding import FileResult, ItemError
from service.core.result import ImageContext, make_result
from service.core.selection import resolve_options
from service.engine.device import Device, DeviceResult
from service.errors import DetectionError, InferenceFailed
from service.rest.problems import item_error
from service.settings import Settings
from service.types import DetectOptions, DetectResult


def open_device(settings: Settings) -> Device:
    """Loads the model into this process.

    Raises:
        CheckpointError: for a model that does not exist or cannot be used.
        RuntimeError: for a device that does not exist.
    """
    from service.engine.torch_device import TorchDevice  # noqa: PLC0415

    path = resolve_model(settings.model, settings.model_cache_dir)
    return TorchDevice(path, settings.device, settings.engine_threads, settings.precision)


class OfflineDetector:
    """Detects in one image after the other.

    Args:
        device: runs the model, one image per batch.
        limits: of an image file.
        options: for every image.
        on_result: called with each file, its bytes and its result.
        show_tracebacks: print those of failures of the model to stderr.

    Raises:
        InvalidOptions: for options that this model does not have.
    """

    def __init__(
        self,
        device: Device,
        limits: ImageLimits,
        options: DetectOptions,
        *,
        on_result: Callable[[ImageFile, bytes, DetectResult], None] | None = None,
        show_tracebacks: bool = False,
    ) -> None:
        self._selection = resolve_options(options, device.model)
        self._device = device
        self._limits = limits
        self._on_result = on_result
        self._show_tracebacks = show_tracebacks

    @property
    def model(self) -> ModelInfo:
        """The model that detects."""
        return self._device.model

    def detect(self, file: ImageFile, request_id: str) -> FileResult:
        """Detects in one file; a failure becomes the error of that file."""
        try:
            return FileResult(file.name, self._detect(file, request_id))
        except UnreadableFile as error:
            problem = ItemError("unreadable_file", "The file cannot be read", str(error))
            return FileResult(file.name, error=problem)
        except MemoryError:
            problem = ItemError("out_of_memory", "Out of memory", "not enough memory to decode it")
            return FileResult(file.name, error=problem)
        except DetectionError as error:
            return FileResult(file.name, error=item_error(error))

    def _detect(self, file: ImageFile, request_id: str) -> DetectResult:
        opened = time.monotonic()
        data = file.read(self._limits)
        read = time.monotonic()
        decoded = decode_image(data, self._device.model.config, self._limits)
        image = ImageContext(
            model=self._device.model,
            selection=self._selection,
            request_id=request_id,
            original_size=decoded.original_size,
            started=read,
            read_ms=(read - opened) * 1000,
            decode_ms=(time.monotonic() - read) * 1000,
        )
        batch = self._run(decoded)
        result = make_result(image, batch.detections[0], batch)
        if self._on_result is not None:
            self._on_result(file, data, result)
        return result

    def _run(self, decoded: DecodedImage) -> DeviceResult:
        height, width = decoded.pixels.shape[:2]
        padded = padded_size(height, width, self._device.model.config.bucket_stride)
        try:
            return self._device.run([decoded.pixels], padded, [decoded.original_size])
        except Exception as error:
            if self._show_tracebacks:
                traceback.print_exc()
            raise InferenceFailed(f"{type(error).__name__}: {error}") from error
