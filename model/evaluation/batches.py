"""Images of an evaluation, decoded and resized as in serving, grouped by shape bucket."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.config import ModelConfig
from model.data.annotations import ImageAnnotations
from model.data.image_files import FILE_LIMITS, read_image
from model.geometry import padded_size, resized_size
from model.images.decode import ImageLimits
from model.images.resize import resize_bilinear

Pixels = npt.NDArray[np.uint8]  # [h, w, 3] RGB


@dataclass(frozen=True)
class BatchedImage:
    """One image, ready for a predictor."""

    image_id: int
    pixels: Pixels  # resized by the model's rule
    original_size: tuple[int, int]  # (H, W) after EXIF rotation
    padded: tuple[int, int]  # (H, W) of its shape bucket
    resize_ms: float  # duration of the resize


def image_batches(
    images: Sequence[ImageAnnotations],
    folder: Path,
    config: ModelConfig,
    batch_size: int,
    limits: ImageLimits = FILE_LIMITS,
) -> Iterator[list[BatchedImage]]:
    """Reads images and groups those of the same shape bucket.

    Args:
        images: in the order in which they are read.
        folder: that their file names are relative to.
        config: whose input rule and bucket grid apply.
        batch_size: images of a full batch; partial batches come at the end.
        limits: on an image file.

    Yields:
        Batches, never empty; all images of one have the same `padded`.

    Raises:
        DataError: for an image that cannot be read.
    """
    waiting: dict[tuple[int, int], list[BatchedImage]] = {}
    for image in images:
        item = _prepare(image.image_id, read_image(folder / image.file_name, limits), config)
        batch = waiting.setdefault(item.padded, [])
        batch.append(item)
        if len(batch) >= batch_size:
            yield waiting.pop(item.padded)
    yield from waiting.values()


def _prepare(image_id: int, image: Image.Image, config: ModelConfig) -> BatchedImage:
    start = time.perf_counter()
    width, height = image.size
    size = resized_size(height, width, config.shortest_side, config.longest_side)
    return BatchedImage(
        image_id,
        resize_bilinear(image, *size),
        (height, width),
        padded_size(*size, config.bucket_stride),
        (time.perf_counter() - start) * 1000,
    )
