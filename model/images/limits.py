"""Limits of an image file, checked before its pixels are decoded."""

from __future__ import annotations

from dataclasses import dataclass
from operator import gt
from typing import NamedTuple

from model.images.errors import ImageTooLarge, InvalidImage

# Decoding and resizing are far slower per pixel for images with longer sides.
MAX_SIDE = 1_000_000


@dataclass(frozen=True)
class ImageLimits:
    """Limits of an image, checked before a pixel is decoded."""

    max_bytes: int  # of the encoded file
    max_pixels: int  # width x height, by the file's header
    max_jpeg_scans: int = 64  # a progressive JPEG has about 10; each passes over all pixels


class Cost(NamedTuple):
    """What decoding an image takes, estimated by its header."""

    memory_bytes: int
    seconds: float  # of one core


class CostsMore(Exception):
    """Decoding the image costs more than the caller granted; it may retry with more."""

    def __init__(self, cost: Cost) -> None:
        """Keeps the cost of decoding."""
        super().__init__(cost)
        self.cost = cost


def check_byte_count(num_bytes: int, limits: ImageLimits) -> None:
    """Refuses a file by its length, which an adapter may know before it has the bytes.

    Raises:
        InvalidImage: for an empty file.
        ImageTooLarge: for more than `limits.max_bytes`.
    """
    if num_bytes == 0:
        raise InvalidImage("the image is empty (0 bytes)")
    if num_bytes > limits.max_bytes:
        raise ImageTooLarge(
            f"the image has {num_bytes} bytes; at most {limits.max_bytes} are accepted"
        )


def check_pixel_count(size: tuple[int, int], limits: ImageLimits) -> None:
    """Refuses an image by its width and height.

    Raises:
        InvalidImage: for an image without pixels.
        ImageTooLarge: for more than `limits.max_pixels`, or a side of more than `MAX_SIDE`.
    """
    width, height = size
    if width < 1 or height < 1:
        raise InvalidImage(f"the image has no pixels: its header says {width} x {height}")
    if max(width, height) > MAX_SIDE:
        raise ImageTooLarge(
            f"the image has {width} x {height} pixels; a side of at most {MAX_SIDE} is accepted"
        )
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} = {width * height} pixels; "
            f"at most {limits.max_pixels} are accepted"
        )


def check_cost(cost: Cost, granted: Cost | None) -> None:
    """Compares the cost of decoding with what was granted (None: no limit).

    Raises:
        CostsMore: if the cost is higher in any respect.
    """
    if granted is not None and any(map(gt, cost, granted)):
        raise CostsMore(cost)
