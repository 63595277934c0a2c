"""Detects in images in this process, with the same stages as POST /detect.

file -> decode_image -> Device.run -> make_result -> FileResult -> encoding
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from model.geometry import padded_size
from model.images.decode import DecodedImage, ImageLimits, JpegDecoding, decode_image
from model.images.regions import decode_regions
from model.weights.info import ModelInfo, resolve_model
from service.cli.inputs import ImageFile, UnreadableFile
from service.core.encoding import FileResult, ItemError
from service.core.result import ImageContext, make_result
from service.core.selection import resolve_options
from service.core.tiling.options import plan_tiles
from service.core.tiling.selected import merge_selected
from service.engine.device import Device, DeviceResult
from service.errors import DetectionError, InferenceFailed
from service.rest.problems import item_error
from service.settings import Settings
from service.types import DetectOptions, DetectResult, TileOptions

_MAX_TILES = 256  # of one image, if their size is given
# With `auto`, the tiles are those of a service with the default settings.
_MAX_AUTO_TILES: int = Settings.model_fields["max_tiles"].default


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
        jpeg_decoding: "scaled" decodes large JPEGs to a fraction of their size.
        on_result: called with each file, its bytes and its result; it handles its own failures.
        show_tracebacks: print those of failures of the model to stderr.

    Raises:
        InvalidOptions: for options that this model does not have.
    """

    def __init__(  # noqa: PLR0913 - options, by keyword
        self,
        device: Device,
        limits: ImageLimits,
        options: DetectOptions,
        *,
        jpeg_decoding: JpegDecoding = "exact",
        on_result: Callable[[ImageFile, bytes, DetectResult], None] | None = None,
        show_tracebacks: bool = False,
    ) -> None:
        self._selection = resolve_options(options, device.model)
        self._tiles = options.tiles
        self._device = device
        self._limits = limits
        self._jpeg_decoding = jpeg_decoding
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
        config = self._device.model.config
        decoded = decode_image(data, config, self._limits, jpeg_decoding=self._jpeg_decoding)
        decode_ms = (time.monotonic() - read) * 1000
        batch = self._run(decoded.pixels, decoded.original_size)
        if self._tiles is not None:
            batch, additional_ms = self._run_tiles(data, decoded, batch, self._tiles)
            decode_ms += additional_ms
        image = ImageContext(
            model=self._device.model,
            selection=self._selection,
            request_id=request_id,
            original_size=decoded.original_size,
            started=read,
            read_ms=(read - opened) * 1000,
            decode_ms=decode_ms,
        )
        result = make_result(image, batch.detections[0], batch)
        if self._on_result is not None:
            self._on_result(file, data, result)
        return result

    def _run_tiles(
        self, data: bytes, decoded: DecodedImage, whole: DeviceResult, tiles: TileOptions
    ) -> tuple[DeviceResult, float]:
        """Runs the tiles of an image, one per batch.

        Returns:
            The merged detections with the sums of all times, and the ms of decoding them.
        """
        config, size = self._device.model.config, decoded.original_size
        most = _MAX_AUTO_TILES if tiles.size is None else _MAX_TILES
        regions = plan_tiles(tiles, size, config, most)
        if not regions:
            return whole, 0.0
        started = time.monotonic()
        pixels: list[npt.NDArray[np.uint8]] = []

        def place(_number: int, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
            pixels.append(np.empty((*shape, 3), np.uint8))
            return pixels[-1]

        decode_regions(data, config, self._limits, None, regions, place)
        decode_ms = (time.monotonic() - started) * 1000
        found = [self._run(part, region.size) for part, region in zip(pixels, regions, strict=True)]
        parts = [(region, each.detections[0]) for region, each in zip(regions, found, strict=True)]
        merged = merge_selected(
            self._selection, config.max_detections, whole.detections[0], parts, size
        )
        batches = [whole, *found]
        times = (
            sum(getattr(each, name) for each in batches)
            for name in ("assemble_ms", "forward_ms", "postprocess_ms", "copy_ms")
        )
        return DeviceResult([merged], *times), decode_ms

    def _run(self, pixels: npt.NDArray[np.uint8], original_size: tuple[int, int]) -> DeviceResult:
        height, width = pixels.shape[:2]
        padded = padded_size(height, width, self._device.model.config.bucket_stride)
        try:
            return self._device.run([pixels], padded, [original_size])
        except Exception as error:
            if self._show_tracebacks:
                traceback.print_exc()
            raise InferenceFailed(f"{type(error).__name__}: {error}") from error
