"""Makes pictures as small or large as the network wants them: bilinear, averaging where it shrinks.

The filter is as wide as the reduction, as that of Pillow's `resize`. The compiled kernel takes a
fraction of Pillow's time and reads the pixels in place. Pillow does the work for images stored in
several blocks (`model.images.pixel_memory`) and where the kernel is not available. Both give the
same bits, except for shapes in which newer versions of Pillow do rows before columns: there they
differ by at most one of 255 levels.
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

_MIN_WIDTH = 4  # of what the kernel takes: it reads so many pixels at a time


def available() -> bool:
    """Whether the kernel can be used here; the first call builds or loads it.

    Where it cannot, one warning tells why.
    """
    return _kernel.available()


def resize_bilinear(
    picture: Image.Image, height: int, width: int, out: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """Resizes a picture of mode RGB.

    Args:
        picture: of any size.
        height: of the result, pixels.
        width: of the result, pixels.
        out: where the result is written, [height, width, 3] and C-contiguous; None: a new array.

    Returns:
        The result, [height, width, 3], C-contiguous. A picture that has that size already is
        copied as it is.

    Raises:
        ValueError: for another mode, a size below 1, or an `out` of another shape or layout.
        MemoryError: where there is none left.
    """
    if picture.mode != "RGB" or min(height, width) < 1:
        raise ValueError(f"cannot resize a picture of mode {picture.mode} to {height} x {width}")
    if out is None:
        out = np.empty((height, width, 3), dtype=np.uint8)
    elif out.shape != (height, width, 3) or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"a result of {height} x {width} pixels cannot be written to that array")
    if picture.size != (width, height) and picture.width >= _MIN_WIDTH and available():
        with samples_of(picture) as samples:
            if samples is not None:
                _by_kernel(samples, picture.size, out)
                return out
    # reducing_gap=None: a plain bilinear pass over all pixels.
    resized = picture.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=None)
    out[...] = np.asarray(resized)
    return out


def _by_kernel(samples: int, source_size: tuple[int, int], out: npt.NDArray[np.uint8]) -> None:
    assert _kernel.library is not None
    width, height = source_size
    failed = _kernel.library.lite_detr_resize(
        samples, height, width, *out.shape[:2], out.ctypes.data
    )
    if failed:
        raise MemoryError("no memory left for resizing a picture")


def _load() -> ctypes.CDLL:
    library = load_any(RESIZE)
    function = library.lite_detr_resize
    function.argtypes = (ctypes.c_void_p, *(ctypes.c_int64,) * 4, ctypes.c_void_p)
    function.restype = ctypes.c_int
    return library


_kernel = LazyLibrary(_load, "pictures are resized by Pillow, several times slower")
