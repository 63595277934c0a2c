"""The pixels of a Pillow picture where they lie: what a kernel reads without a copy.

Pillow shows its memory by the Arrow C data interface
(https://arrow.apache.org/docs/format/CDataInterface.html), as one array of all samples, provided
that the picture lies in one block. Larger ones it would part into several, unless told otherwise.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from PIL import Image

_BLOCK_BYTES = 1 << 30  # 268 megapixels of RGB


class _ArrowArray(ctypes.Structure):
    """`struct ArrowArray`, as far as it is read here."""

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


def keep_pictures_whole() -> None:
    """Has Pillow keep each picture that is made from now on in one block, up to a GiB.

    Blocks of that size are the kernel's again as soon as they are freed.
    """
    Image.core.set_block_size(_BLOCK_BYTES)  # type: ignore[attr-defined] # Pillow's C side


@contextmanager
def samples_of(picture: Image.Image) -> Iterator[int | None]:
    """The address of a picture's samples: uint8 [height, width, 4], the fourth of no meaning.

    Args:
        picture: of mode RGB.

    Yields:
        The address, valid within the context; None where the picture lies in several blocks.
    """
    try:
        # The capsules keep the memory, also where the picture is dropped meanwhile.
        schema, array = picture.__arrow_c_array__()
    except ValueError:
        yield None
        return
    pixels = _ArrowArray.from_address(_pointer(array, b"arrow_array"))
    samples = _ArrowArray.from_address(pixels.children[0])
    yield samples.buffers[1]
    del schema, array
