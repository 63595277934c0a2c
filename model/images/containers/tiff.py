"""TIFF: the memory and the work that the first image takes, and the file that Pillow reads.

A tile can be far larger than the image, and all tiles can be at the same place in the file, so
that neither the pixels nor the bytes of a file bound the work. Both are bounded here, by the
directory, before anything is decompressed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.images.containers import tiff_directory as tags
from model.images.containers.tiff_directory import (
    Entry,
    TiffDirectory,
    integer_entry,
    with_directories,
)
from model.images.containers.tiff_layout import (
    BLACK_IS_ZERO,
    STRIP_PIXELS,
    TiffLayout,
    read_layout,
)
from model.images.errors import ImageTooLarge, InvalidImage, UnsupportedImage
from model.images.limits import Cost, ImageLimits, check_pixel_count
from model.images.orientation import AS_STORED, orientation_of

# What Pillow needs of a directory, in addition to the strips or tiles.
_KEPT_TAGS = frozenset(
    {
        *(256, 257, 258, 259, 262, 266, 277, 278, 284, 292, 293, 317, 320, 322, 323, 332, 338),
        *(339, 347, 529, 530, 531, 532),
        *range(512, 522),  # old-style JPEG
    }
)
_LAST_ORIENTATION = 8
_UNCOMPRESSED = 1  # compression
# Of one core; measured with all compressions.
_SECONDS_PER_PIXEL, _SECONDS_PER_SAMPLE_BYTE, _SECONDS_PER_FILE_BYTE = 8e-9, 4e-9, 8e-9
_SECONDS_PER_DEEP_SAMPLE = 20e-9  # that becomes a number and then a colour here
_MAX_BYTES_PER_PIXEL = 16  # of the limit of pixels: four 32-bit samples each
# Pillow's decoder: the image, and its converted or rotated copy, or two copies for resizing.
_PEAK_BYTES_PER_PIXEL = 12
_BYTES_PER_CONVERTED_SAMPLE = 34  # in numbers of several types
_TILE_BUFFERS = 3  # of a strip or tile: decompressed, converted, and Pillow's copy


@dataclass(frozen=True)
class TiffImage:
    """The first image of a file, by its directory.

    Attributes:
        layout: of its samples.
        orientation: 1 to 8.
        cost: of decoding.
        data: the file for Pillow. If `layout.is_read_as_bytes`, it has a grey image per plane,
            [height, tiles across x bytes of a tile's row].
    """

    layout: TiffLayout
    orientation: int
    cost: Cost
    data: bytes


@dataclass(frozen=True)
class _Strips:
    """The strips or tiles of the image, plane by plane, each from left to right and down."""

    offsets: npt.NDArray[np.int64]
    byte_counts: npt.NDArray[np.int64]


def read_tiff(data: bytes | memoryview, limits: ImageLimits) -> TiffImage:
    """Reads the directory of a TIFF's first image.

    Args:
        data: the whole file.
        limits: of which the number of pixels applies to the tiles too.

    Raises:
        InvalidImage: for a broken directory, too many tags or strips, and strips that are read
            many times over.
        UnsupportedImage: for a kind of TIFF that cannot be decoded, which the message names.
        ImageTooLarge: for too many pixels, in the image or in its tiles.
    """
    view = memoryview(data)
    if bytes(view[8:10]) == b"CR":
        raise UnsupportedImage("Canon raw images are not supported; send JPEG, PNG or TIFF")
    directory = TiffDirectory(view)
    layout = read_layout(directory)
    check_pixel_count(layout.size, limits)
    _check_size(layout, limits)
    strips = _read_strips(directory, layout, len(data))
    _check_read_bytes(strips, layout, len(data))
    if layout.is_read_as_bytes:
        pages = _pages_of_bytes(directory, layout, strips)
    else:
        kept = {tag: directory.entry(tag) for tag in directory.entries if tag in _KEPT_TAGS}
        kept |= {
            tags.FILL_ORDER: integer_entry(directory, [layout.fill_order]),
            **_tile_entries(directory, layout),
        }
        pages = [kept | _strip_entries(directory, layout, strips)]
    return TiffImage(
        layout,
        _orientation(directory),
        Cost(_peak_memory(layout), _seconds(layout, len(data))),
        with_directories(view, directory, pages),
    )


def _orientation(directory: TiffDirectory) -> int:
    orientation = directory.integer(tags.ORIENTATION, 0)
    if AS_STORED <= orientation <= _LAST_ORIENTATION:
        return orientation
    xmp = directory.entries.get(tags.XMP)
    return orientation_of(None, None if xmp is None else xmp.value)


def _read_strips(directory: TiffDirectory, layout: TiffLayout, num_bytes: int) -> _Strips:
    """Returns the strips or tiles that decoding reads; none reaches beyond the end of the file.

    Raises:
        InvalidImage: if some are missing.
    """
    across, down = layout.tiles
    wanted = across * down * layout.planes
    pairs = [
        (tags.STRIP_OFFSETS, tags.STRIP_BYTE_COUNTS),
        (tags.TILE_OFFSETS, tags.TILE_BYTE_COUNTS),
    ]
    for offsets_tag, byte_counts_tag in reversed(pairs) if layout.is_tiled else pairs:
        offsets = directory.integers(offsets_tag)[:wanted]
        if len(offsets) == wanted:
            byte_counts = directory.integers(byte_counts_tag)[:wanted]
            return _within_file(offsets, byte_counts, layout, num_bytes)
    raise InvalidImage("the TIFF image cannot be decoded: it lacks strips or tiles")


def _within_file(
    offsets: npt.NDArray[np.int64],
    byte_counts: npt.NDArray[np.int64],
    layout: TiffLayout,
    num_bytes: int,
) -> _Strips:
    """Adds missing byte counts and reduces those that reach beyond the end of the file."""
    across, down = layout.tiles
    (_, height), (_, tile_height) = layout.size, layout.tile_size
    rows = np.full((layout.planes, down, across), tile_height)
    if not layout.is_tiled:
        rows[:, -1] = height - tile_height * (down - 1)
    uncompressed = rows.ravel() * layout.tile_row_bytes
    if len(byte_counts) < len(offsets):
        byte_counts = np.zeros_like(offsets)
    missing = uncompressed if layout.is_uncompressed else num_bytes
    byte_counts = np.where(byte_counts > 0, byte_counts, missing)
    byte_counts = np.minimum(byte_counts, num_bytes - offsets)
    needed = uncompressed if layout.is_uncompressed else 1
    if (byte_counts < needed).any():
        raise InvalidImage(
            "the TIFF image cannot be decoded: it is truncated (strips or tiles are beyond its end)"
        )
    return _Strips(offsets, byte_counts)


def _check_size(layout: TiffLayout, limits: ImageLimits) -> None:
    """Bounds the bytes that decompression writes.

    Raises:
        ImageTooLarge: for too many pixels in the tiles, or too many bytes of samples.
    """
    (width, height), (tile_width, tile_height) = layout.size, layout.tile_size
    across, down = layout.tiles
    pixels = tile_width * tile_height * across * down
    # Tiles of the usual sizes add less than the image has, unless both are small.
    if pixels > max(limits.max_pixels, 2 * width * height):
        raise ImageTooLarge(
            f"the TIFF image has {across * down} tiles of {tile_width} x {tile_height} = "
            f"{pixels} pixels; at most {limits.max_pixels} are accepted"
        )
    max_bytes = _MAX_BYTES_PER_PIXEL * limits.max_pixels
    if _num_sample_bytes(layout) > max_bytes:
        raise ImageTooLarge(
            f"the TIFF image has {_num_sample_bytes(layout)} bytes of samples; at most {max_bytes} "
            "are accepted"
        )


def _check_read_bytes(strips: _Strips, layout: TiffLayout, num_bytes: int) -> None:
    """Bounds the bytes that decompression reads.

    Raises:
        InvalidImage: if they are many more than the file has.
    """
    byte_counts = strips.byte_counts
    if layout.compression == _UNCOMPRESSED:  # no more is read than a strip has samples
        byte_counts = byte_counts.clip(max=layout.tile_row_bytes * layout.tile_size[1])
    read = int(byte_counts.sum())
    # Tiles of the same content may share their bytes, but those are fewer than the samples.
    if read > num_bytes + _num_sample_bytes(layout):
        raise InvalidImage(
            f"the TIFF image cannot be decoded: its strips or tiles have {read} bytes in total, "
            f"the file has {num_bytes}"
        )


def _num_sample_bytes(layout: TiffLayout) -> int:
    across, down = layout.tiles
    return layout.tile_row_bytes * layout.tile_size[1] * across * down * layout.planes


def _seconds(layout: TiffLayout, num_bytes: int) -> float:
    """The time that decoding takes, by the image's header and the file's length."""
    width, height = layout.size
    deep_samples = layout.samples if layout.is_read_as_bytes else 0
    return (
        width * height * (_SECONDS_PER_PIXEL + deep_samples * _SECONDS_PER_DEEP_SAMPLE)
        + _num_sample_bytes(layout) * _SECONDS_PER_SAMPLE_BYTE
        + num_bytes * _SECONDS_PER_FILE_BYTE
    )


def _peak_memory(layout: TiffLayout) -> int:
    """Returns the bytes that decoding needs."""
    width, height = layout.size
    tile_height = layout.tile_size[1]
    num_bytes = width * height * _PEAK_BYTES_PER_PIXEL
    num_bytes += _TILE_BUFFERS * max(layout.tile_row_bytes, 4 * layout.tile_size[0]) * tile_height
    if layout.is_read_as_bytes:
        across, _ = layout.tiles
        num_bytes += layout.tile_row_bytes * across * height * (layout.planes + 1)
        converted = min(width * height, max(width, STRIP_PIXELS))
        num_bytes += converted * layout.samples * _BYTES_PER_CONVERTED_SAMPLE
    return num_bytes


def _strip_entries(
    directory: TiffDirectory, layout: TiffLayout, strips: _Strips, page: slice = slice(None)
) -> dict[int, Entry]:
    """Returns the entries of the strips or tiles of a page."""
    offsets_tag, byte_counts_tag = (
        (tags.TILE_OFFSETS, tags.TILE_BYTE_COUNTS)
        if layout.is_tiled
        else (tags.STRIP_OFFSETS, tags.STRIP_BYTE_COUNTS)
    )
    return {
        offsets_tag: integer_entry(directory, strips.offsets[page]),
        byte_counts_tag: integer_entry(directory, strips.byte_counts[page]),
    }


def _tile_entries(directory: TiffDirectory, layout: TiffLayout) -> dict[int, Entry]:
    """Returns the entries that state the size of a tile or strip."""
    width, height = layout.tile_size
    numbers = (
        {tags.TILE_WIDTH: width, tags.TILE_LENGTH: height}
        if layout.is_tiled
        else {tags.ROWS_PER_STRIP: height}
    )
    return {tag: integer_entry(directory, [number]) for tag, number in numbers.items()}


def _pages_of_bytes(
    directory: TiffDirectory, layout: TiffLayout, strips: _Strips
) -> list[dict[int, Entry]]:
    """Returns the directories of grey 8-bit images: the bytes of the samples, plane by plane."""
    across, down = layout.tiles
    row_bytes = layout.tile_row_bytes
    numbers = {
        tags.IMAGE_WIDTH: row_bytes * across,
        tags.IMAGE_LENGTH: layout.size[1],
        tags.BITS_PER_SAMPLE: 8,
        tags.COMPRESSION: layout.compression,
        tags.PHOTOMETRIC: BLACK_IS_ZERO,
        tags.SAMPLES_PER_PIXEL: 1,
        tags.FILL_ORDER: layout.fill_order,
    }
    page = {tag: integer_entry(directory, [number]) for tag, number in numbers.items()}
    page.update(_tile_entries(directory, layout))
    if layout.is_tiled:
        page[tags.TILE_WIDTH] = integer_entry(directory, [row_bytes])
    if tags.JPEG_TABLES in directory.entries:
        page[tags.JPEG_TABLES] = directory.entry(tags.JPEG_TABLES)
    per_plane = across * down
    starts = range(0, per_plane * layout.planes, per_plane)
    return [
        page | _strip_entries(directory, layout, strips, slice(start, start + per_plane))
        for start in starts
    ]
