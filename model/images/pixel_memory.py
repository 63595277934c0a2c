"""The address of a Pillow image's pixels, for kernels that read them without a copy.

Pillow exports its memory through the Arrow C data interface
(https://arrow.apache.org/docs/format/CDataInterface.html), as one array of all samples, if the
image is stored in one block. By default it stores large images in several.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from PIL import Image

_BLOCK_BYTES = 1 << 30  # 268 megapixels of RGB


class _ArrowArray(ctypes.Structure):
    """`struct ArrowArray`, up to the last field that is read here."""

    _fields_: ClassVar = [
        ("length", ctypes.c_int64),
        ("null_count", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("n_buffers", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("buffers", ctypes.POINTER(ctypes.c_void_p)),
        ("children", ctypes.POINTER(ctypes.c_void_p)),
    ]


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_pointer.restype = ctypes.c_void_p


def store_images_in_one_block() -> None:
    """Makes Pillow store new images in one block each, up to 1 GiB.

    Blocks of that size go back to the operating system as soon as they are freed.
    """
    Image.core.set_block_size(_BLOCK_BYTES)  # type: ignore[attr-defined] # Pillow's C side


@contextmanager
def samples_of(image: Image.Image) -> Iterator[int | None]:
    """Yields the address of an image's samples: uint8 [height, width, 4].

    Args:
        image: of mode RGB, whose fourth sample is unused, or RGBA.

    Yields:
        The address, valid within the context; None if the image is stored in several blocks.
    """
    try:
        # The capsules keep the memory alive, even if the image is deleted meanwhile.
        schema, array = image.__arrow_c_array__()
    except ValueError:
        yield None
        return
    pixels = _ArrowArray.from_address(_pointer(array, b"arrow_array"))
    samples = _ArrowArray.from_address(pixels.children[0])
    yield samples.buffers[1]
    del schema, array
