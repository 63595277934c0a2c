"""The orientation of an image, from its EXIF or XMP metadata.

The rule is the same for every format that has such metadata (JPEG, PNG, WebP, TIFF) and for every
use: the Orientation tag of EXIF (in TIFF, of the image itself); where there is none, the
`tiff:Orientation` property of XMP; otherwise the image stays as it is stored. AVIF and HEIC have
properties for it (`model.images.containers.heif`).
"""

from __future__ import annotations

import re
import struct

from PIL import Image

AS_STORED = 1
_ORIENTATION_TAG = 0x0112
_INTEGER_FORMATS = {1: "B", 3: "H", 4: "I"}  # TIFF's BYTE, SHORT and LONG
_MAX_ENTRIES = 4096  # a camera writes about 20
_ENTRY_BYTES = 12
_EXIF_PREFIX = b"Exif\x00\x00"
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation(?:\s*=\s*["']|\s*>)\s*([1-8])(?!\d)""")
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# By orientation: x and y of the upright image as sums of x and y as stored, both from its centre.
_MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, -1, 1, 0),
    7: (0, -1, -1, 0),
    8: (0, 1, -1, 0),
}
_SIDEWAYS = frozenset(number for number, matrix in _MATRICES.items() if matrix[0] == 0)
_ORIENTATIONS = {matrix: orientation for orientation, matrix in _MATRICES.items()}


def orientation_of(exif: bytes | memoryview | None, xmp: bytes | memoryview | None) -> int:
    """Returns the orientation that the metadata of an image state.

    Args:
        exif: a TIFF file, with or without the prefix "Exif"; None if the image has none.
        xmp: an XML document; None if the image has none.

    Returns:
        1 to 8; 1 (as stored) if neither states a valid one.
    """
    return (
        _valid(None if exif is None else _exif_orientation(exif))
        or _valid(None if xmp is None else _xmp_orientation(xmp))
        or AS_STORED
    )


def apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """Returns the image turned or mirrored to be upright; itself for orientation 1."""
    transpose = _TRANSPOSE.get(orientation)
    return image if transpose is None else image.transpose(transpose)


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Returns the width and height of the upright image, given those of the stored one."""
    return size[::-1] if orientation in _SIDEWAYS else size


def upright_box(
    size: tuple[int, int], part: tuple[float, float], orientation: int
) -> tuple[float, float, float, float]:
    """Returns where the upper left part of an image lies in the upright image.

    Args:
        size: (width, height) of the stored image.
        part: (width, height) of its part.
        orientation: of the stored image.

    Returns:
        Left, top, right and bottom.
    """
    a, b, c, d = _MATRICES[orientation]
    middle = [side / 2 for side in size]
    new_middle = upright_size(size, orientation)
    corners = [
        (x * a + y * b + new_middle[0] / 2, x * c + y * d + new_middle[1] / 2)
        for x, y in (
            (-middle[0], -middle[1]),
            (part[0] - middle[0], part[1] - middle[1]),
        )
    ]
    (x, y), (other_x, other_y) = corners
    return min(x, other_x), min(y, other_y), max(x, other_x), max(y, other_y)


def after(second: int, first: int) -> int:
    """Returns the orientation that has the effect of `first` and then `second`."""
    a, b, c, d = _MATRICES[second]
    e, f, g, h = _MATRICES[first]
    return _ORIENTATIONS[a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h]


def _valid(orientation: int | None) -> int | None:
    return orientation if orientation is not None and 1 <= orientation <= len(_TRANSPOSE) + 1 else 0


def _exif_orientation(exif: bytes | memoryview) -> int | None:
    """Returns the value of the Orientation tag; None if it has none or the EXIF is broken."""
    if bytes(exif[: len(_EXIF_PREFIX)]) == _EXIF_PREFIX:
        exif = exif[len(_EXIF_PREFIX) :]
    order = {b"II": "<", b"MM": ">"}.get(bytes(exif[:2]))
    if order is None:
        return None
    try:
        (offset,) = struct.unpack_from(order + "I", exif, 4)
        (num_entries,) = struct.unpack_from(order + "H", exif, offset)
        for number in range(min(num_entries, _MAX_ENTRIES)):
            entry = offset + 2 + number * _ENTRY_BYTES
            tag, kind, count = struct.unpack_from(order + "HHI", exif, entry)
            if tag == _ORIENTATION_TAG and kind in _INTEGER_FORMATS and count == 1:
                (value,) = struct.unpack_from(order + _INTEGER_FORMATS[kind], exif, entry + 8)
                return int(value)
    except struct.error:
        return None
    return None


def _xmp_orientation(xmp: bytes | memoryview) -> int | None:
    found = _XMP_ORIENTATION.search(xmp)
    return None if found is None else int(found[1])
