"""Images of an evaluation, decoded and resized as in serving, grouped by shape bucket."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.config import ModelConfig
from model.data.annotations import DataError, ImageAnnotations
from model.data.image_files import FILE_LIMITS, read_for_model
from model.geometry import padded_size, resized_size
from model.images.decode import ImageLimits, JpegDecoding, UprightImage
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


def image_batches(  # noqa: PLR0913 - options, by keyword
    images: Sequence[ImageAnnotations],
    folder: Path,
    config: ModelConfig,
    batch_size: int,
    limits: ImageLimits = FILE_LIMITS,
    *,
    jpeg_decoding: JpegDecoding = "exact",
    on_unreadable: Callable[[ImageAnnotations, DataError], None] | None = None,
    readers: int = 0,
) -> Iterator[list[BatchedImage]]:
    """Reads images and groups those of the same shape bucket.

    Args:
        images: in the order in which they are read.
        folder: that their file names are relative to.
        config: whose input rule and bucket grid apply.
        batch_size: images of a full batch; partial batches come at the end.
        limits: on an image file.
        jpeg_decoding: "scaled" decodes large JPEGs to a fraction of their size.
        on_unreadable: called with each image that cannot be read, which is then left out; None:
            the first one is an error.
        readers: threads that read ahead; 0: images are read when they are needed.

    Yields:
        Batches, never empty; all images of one have the same `padded`.

    Raises:
        DataError: for an image that cannot be read.
    """

    def read(image: ImageAnnotations) -> BatchedImage | DataError:
        file = folder / image.file_name
        try:
            upright = read_for_model(file, config, limits, jpeg_decoding)
            return _prepare(image.image_id, upright, config)
        except DataError as error:
            return error

    waiting: dict[tuple[int, int], list[BatchedImage]] = {}
    for image, item in zip(images, _map_ahead(read, images, readers), strict=True):
        if isinstance(item, DataError):
            if on_unreadable is None:
                raise item
            on_unreadable(image, item)
            continue
        batch = waiting.setdefault(item.padded, [])
        batch.append(item)
        if len(batch) >= batch_size:
            yield waiting.pop(item.padded)
    yield from waiting.values()


def _map_ahead(
    read: Callable[[ImageAnnotations], BatchedImage | DataError],
    images: Sequence[ImageAnnotations],
    readers: int,
) -> Iterator[BatchedImage | DataError]:
    """As `map`, with threads that are at most two images each ahead."""
    if not readers:
        yield from map(read, images)
        return
    pool = ThreadPoolExecutor(readers)
    try:
        ahead: deque[Future[BatchedImage | DataError]] = deque()
        for image in images:
            ahead.append(pool.submit(read, image))
            if len(ahead) > 2 * readers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(image_id: int, upright: UprightImage, config: ModelConfig) -> BatchedImage:
    start = time.perf_counter()
    size = resized_size(*upright.original_size, config.shortest_side, config.longest_side)
    return BatchedImage(
        image_id,
        resize_bilinear(upright.image, *size, box=upright.box),
        upright.original_size,
        padded_size(*size, config.bucket_stride),
        (time.perf_counter() - start) * 1000,
    )
