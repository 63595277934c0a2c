"""Resizes images to the network's input size: bilinear, averaging when it shrinks.

The filter is as wide as the reduction, as in Pillow's `resize`. The compiled kernel takes a
fraction of Pillow's time and reads the pixels in place. Pillow resizes images that are stored in
several blocks (`model.images.pixel_memory`), and all images if the kernel is not available. Both
give the same bits, except for shapes where newer versions of Pillow resize rows before columns:
there they differ by at most one of 255 levels.
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.images.pixel_memory import samples_of
from model.native.lazy import LazyLibrary
from model.native.library import RESIZE
from model.native.prebuilt import load_any

Box = tuple[float, float, float, float]  # left, top, right, bottom; pixels, not always whole

_MIN_WIDTH = 4  # the kernel reads so many pixels at a time


def available() -> bool:
    """Whether the kernel can be used; the first call builds or loads it.

    If it cannot, one warning is logged.
    """
    return _kernel.available()


def resize_bilinear(
    image: Image.Image,
    height: int,
    width: int,
    out: npt.NDArray[np.uint8] | None = None,
    box: Box | None = None,
) -> npt.NDArray[np.uint8]:
    """Resizes an image of mode RGB.

    Args:
        image: of any size.
        height: of the result, pixels.
        width: of the result, pixels.
        out: array to write to, [height, width, 3] and C-contiguous; None for a new one.
        box: the part of the image that the result shows; None for all of it.

    Returns:
        The result, [height, width, 3], C-contiguous. An image of that size is copied.

    Raises:
        ValueError: for another mode, a size below 1, an `out` of another shape or layout, or a
            `box` that is empty or reaches beyond the image.
        MemoryError: if no memory is left.
    """
    if image.mode != "RGB" or min(height, width) < 1:
        raise ValueError(f"cannot resize an image of mode {image.mode} to {height} x {width}")
    if out is None:
        out = np.empty((height, width, 3), dtype=np.uint8)
    elif out.shape != (height, width, 3) or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"a result of {height} x {width} pixels cannot be written to that array")
    whole = (0.0, 0.0, float(image.width), float(image.height))
    box = whole if box is None else box
    if not (0 <= box[0] < box[2] <= image.width and 0 <= box[1] < box[3] <= image.height):
        raise ValueError(f"{box} is not within an image of {image.width} x {image.height} pixels")
    if (
        (image.size != (width, height) or box != whole)
        and image.width >= _MIN_WIDTH
        and available()
    ):
        with samples_of(image) as samples:
            if samples is not None:
                _by_kernel(samples, image.size, out, box)
                return out
    # reducing_gap=None: a plain bilinear pass over all pixels.
    resized = image.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=None)
    out[...] = np.asarray(resized)
    return out


def _by_kernel(
    samples: int, source_size: tuple[int, int], out: npt.NDArray[np.uint8], box: Box
) -> None:
    assert _kernel.library is not None
    width, height = source_size
    failed = _kernel.library.lite_detr_resize(
        samples, height, width, *out.shape[:2], out.ctypes.data, (ctypes.c_double * 4)(*box)
    )
    if failed:
        raise MemoryError("no memory left for resizing an image")


def _load() -> ctypes.CDLL:
    library = load_any(RESIZE)
    function = library.lite_detr_resize
    function.argtypes = (
        ctypes.c_void_p,
        *(ctypes.c_int64,) * 4,
        ctypes.c_void_p,
        ctypes.c_void_p,
    )
    function.restype = ctypes.c_int
    return library


_kernel = LazyLibrary(_load, "images are resized by Pillow, several times slower")
