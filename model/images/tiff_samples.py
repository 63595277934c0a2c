"""Samples of a TIFF, of any depth and layout -> 8-bit RGB.

Pillow decompresses the bytes of the samples, as a grey image per plane; here they become numbers
and then colours, a few rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from model.images.containers import tiff_layout
from model.images.containers.tiff_layout import TiffLayout
from model.images.deep_samples import black_and_white, scaled_to_uint8, shallow_to_uint8

_BYTE_BITS = 8
_WORD_BYTES = 4
_UINT8_MAX = 255
_MODES = {1: "L", 3: "RGB", 4: "CMYK"}

_Bytes = npt.NDArray[np.uint8]
_Samples = npt.NDArray[np.generic]  # [rows, width, samples]


def decode_samples(image: Image.Image, layout: TiffLayout) -> Image.Image:
    """Reads the pages of bytes of an image and returns its colours.

    Args:
        image: the opened file of a `TiffImage`, positioned at its first page.
        layout: of the samples; `is_read_as_bytes`.

    Returns:
        The image in mode RGB as it is stored, with transparency blended on white.
    """
    pages = []
    for plane in range(layout.planes):
        image.seek(plane)
        pages.append(image.copy())
    scale = _scale(pages, layout)
    rgb = Image.new("RGB", layout.size)
    for samples, top in _strips(pages, layout):
        rgb.paste(_to_rgb(samples, layout, scale), (0, top))
    return rgb


def _scale(pages: list[Image.Image], layout: TiffLayout) -> tuple[float, float] | None:
    """Returns the samples that become 0 and 255; None if the type's limits do."""
    if layout.sample_format == tiff_layout.UNSIGNED and layout.bits <= 16:  # noqa: PLR2004
        return None
    strips = (samples[..., : layout.colours] for samples, _ in _strips(pages, layout))
    return black_and_white(strips, layout.bits)


def _strips(pages: list[Image.Image], layout: TiffLayout) -> Iterator[tuple[_Samples, int]]:
    """Yields the samples from top to bottom in strips of whole rows, each with its first row."""
    height = layout.size[1]
    rows = max(1, tiff_layout.STRIP_PIXELS // layout.size[0])
    for top in range(0, height, rows):
        box = (top, min(top + rows, height))
        planes = [
            _samples(np.asarray(page.crop((0, box[0], page.width, box[1]))), layout)
            for page in pages
        ]
        yield planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1), top


def _samples(rows: _Bytes, layout: TiffLayout) -> _Samples:
    """Returns the samples of one plane: [rows, width, samples] from the bytes of rows."""
    width, per_pixel = layout.size[0], layout.samples // layout.planes
    across = layout.tiles[0]
    tiles = rows.reshape(len(rows), across, layout.tile_row_bytes)
    numbers = _numbers(tiles, layout, per_pixel)
    shape = (len(rows), across, layout.tile_size[0], per_pixel)
    numbers = numbers[..., : shape[2] * per_pixel].reshape(shape)
    if layout.predictor == tiff_layout.DIFFERENCES:
        # Floats are differenced by their bits.
        bits = numbers.view(f"u{numbers.dtype.itemsize}")
        numbers = np.cumsum(bits, axis=2, dtype=bits.dtype).view(numbers.dtype)
    return numbers.reshape(len(rows), across * shape[2], per_pixel)[:, :width]


def _numbers(tiles: _Bytes, layout: TiffLayout, per_pixel: int) -> _Samples:
    """Returns the numbers of each row of a tile: [rows, tiles across, numbers]."""
    bits, item = layout.bits, layout.bits // _BYTE_BITS
    kind = {tiff_layout.FLOAT: "f", tiff_layout.SIGNED: "i"}.get(layout.sample_format, "u")
    if layout.predictor == tiff_layout.FLOAT_DIFFERENCES:
        tiles = np.cumsum(
            tiles.reshape(*tiles.shape[:2], -1, per_pixel), axis=2, dtype=np.uint8
        ).reshape(tiles.shape)
        # The first bytes of all numbers, then the second ones, and so on.
        by_number = tiles.reshape(*tiles.shape[:2], item, -1).swapaxes(-1, -2)
        return np.ascontiguousarray(by_number).view(f">f{item}")[..., 0].astype(f"f{item}")
    if bits in {8, 16, 32, 64}:
        numbers = np.ascontiguousarray(tiles).view(f"{layout.order}{kind}{item}")
        return numbers.astype(f"{kind}{item}")
    swapped = bits == 24 and layout.order == "<"  # noqa: PLR2004 - others begin at the high bit
    return _unpacked(tiles, bits, swapped=swapped)


def _unpacked(rows: _Bytes, bits: int, *, swapped: bool) -> npt.NDArray[np.uint32]:
    """Numbers of any count of bits that follow each other in rows of bytes, high bit first.

    After a few bytes they begin at the start of a byte again; the numbers at the same place of all
    such groups are read together.

    Args:
        rows: [..., bytes].
        bits: of a number, 1 to 32.
        swapped: whether the bytes of a group are in the other order.

    Returns:
        [..., numbers]; bits at the end of a row that are no whole number are left out.
    """
    group = math.lcm(bits, _BYTE_BITS)
    count = rows.shape[-1] * _BYTE_BITS // bits
    missing = -rows.shape[-1] % (group // _BYTE_BITS)
    padded = np.pad(rows, [*[(0, 0)] * (rows.ndim - 1), (0, missing)]) if missing else rows
    groups = padded.reshape(*rows.shape[:-1], -1, group // _BYTE_BITS)
    if swapped:
        groups = groups[..., ::-1]
    numbers = np.empty((*groups.shape[:-1], group // bits), np.uint32)
    for place in range(group // bits):
        first, end = place * bits, (place + 1) * bits
        read = range(first // _BYTE_BITS, -(-end // _BYTE_BITS))
        kind = np.uint64 if len(read) > _WORD_BYTES else np.uint32
        found: npt.NDArray[np.unsignedinteger] = groups[..., read[0]].astype(kind)
        for byte in read[1:]:
            found <<= _BYTE_BITS
            found |= groups[..., byte]
        found >>= read[-1] * _BYTE_BITS + _BYTE_BITS - end
        numbers[..., place] = found & ((1 << bits) - 1)
    return numbers.reshape(*rows.shape[:-1], -1)[..., :count]


def _to_rgb(
    samples: _Samples, layout: TiffLayout, scale: tuple[float, float] | None
) -> Image.Image:
    """Returns the colours of some rows, blended on white where there is alpha."""
    if scale is None:
        colours = shallow_to_uint8(samples[..., : layout.colours], layout.bits)
    else:
        colours = scaled_to_uint8(samples[..., : layout.colours], *scale)
    if not layout.has_alpha:
        return _image(colours, layout)
    alpha = _alpha(samples[..., layout.colours], layout)[..., np.newaxis]
    if layout.is_associated:
        divided = np.rint(colours / np.maximum(alpha, 1e-6)).clip(0, _UINT8_MAX)
        colours = divided.astype(np.uint8)
    rgb = np.asarray(_image(colours, layout))
    blended = np.rint(rgb * alpha + _UINT8_MAX * (1 - alpha))
    return Image.fromarray(blended.astype(np.uint8))


def _image(colours: _Bytes, layout: TiffLayout) -> Image.Image:
    """Returns the image of 8-bit samples in the colours of the file."""
    if layout.photometric == tiff_layout.WHITE_IS_ZERO:
        colours = _UINT8_MAX - colours
    height, width, count = colours.shape
    mode = "YCbCr" if layout.photometric == tiff_layout.YCBCR and count == 3 else _MODES[count]  # noqa: PLR2004
    pixels = np.ascontiguousarray(colours)
    return Image.frombytes(mode, (width, height), pixels).convert("RGB")


def _alpha(samples: _Samples, layout: TiffLayout) -> npt.NDArray[np.float64]:
    """Returns alpha from 0 to 1."""
    if layout.sample_format == tiff_layout.FLOAT:
        opaque = 1.0
    else:
        opaque = float((1 << (layout.bits - (layout.sample_format == tiff_layout.SIGNED))) - 1)
    return np.nan_to_num(samples.astype(np.float64) / opaque).clip(0, 1)
