"""Photos for evaluation as serving makes them: decoded by Pillow, resized, grouped by bucket.

Training decodes with OpenCV for speed; here the numbers should be those that a client of the
service would get, so the decoder, the EXIF orientation and the resampling are the service's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from model.config import ModelConfig
from model.evaluation.ground_truth import AnnotatedPhoto
from model.geometry import padded_size, resized_size
from model.images.resize import resize_bilinear
from model.training.records import DataError

Pixels = npt.NDArray[np.uint8]  # [h, w, 3] RGB
PhotoReader = Callable[[Path], Image.Image]  # upright and RGB

_DEEP_MODES = ("I;16", "I;16B", "I;16L")  # 16-bit grey, which Pillow would clip at 255


@dataclass(frozen=True)
class BatchedPhoto:
    """One photo, ready for a predictor."""

    image_id: int
    pixels: Pixels  # resized by the model's rule
    original_size: tuple[int, int]  # (H, W) of the upright photo
    padded: tuple[int, int]  # (H, W) of its bucket
    resize_ms: float  # what the resize took


def photo_batches(
    photos: Sequence[AnnotatedPhoto],
    folder: Path,
    config: ModelConfig,
    batch_size: int,
    read: PhotoReader | None = None,
) -> Iterator[list[BatchedPhoto]]:
    """Reads photos and groups those of one bucket.

    Args:
        photos: in the order in which they are read.
        folder: where their file names start from.
        config: whose input rule and bucket grid apply.
        batch_size: photos of a full batch; what is left over comes at the end.
        read: other decoding than `read_upright`.

    Yields:
        Batches, never empty; all photos of one have the same `padded`.

    Raises:
        DataError: for a photo that cannot be read.
    """
    waiting: dict[tuple[int, int], list[BatchedPhoto]] = {}
    for photo in photos:
        picture = (read or read_upright)(folder / photo.file_name)
        item = _prepare(photo.image_id, picture, config)
        batch = waiting.setdefault(item.padded, [])
        batch.append(item)
        if len(batch) >= batch_size:
            yield waiting.pop(item.padded)
    yield from waiting.values()


def _prepare(image_id: int, picture: Image.Image, config: ModelConfig) -> BatchedPhoto:
    start = time.perf_counter()
    width, height = picture.size
    size = resized_size(height, width, config.shortest_side, config.longest_side)
    return BatchedPhoto(
        image_id,
        resize_bilinear(picture, *size),
        (height, width),
        padded_size(*size, config.bucket_stride),
        (time.perf_counter() - start) * 1000,
    )


def read_upright(file: Path) -> Image.Image:
    """Decodes a photo: EXIF orientation applied, transparency on white, 8-bit RGB.

    Raises:
        DataError: if it is absent or no picture.
    """
    try:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file} cannot be read as a picture: {error}") from error
    if picture.mode in _DEEP_MODES:
        picture = Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("RGB")
