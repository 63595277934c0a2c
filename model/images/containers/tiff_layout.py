"""What the samples of a TIFF mean and how they are stored; which kinds are supported."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.images.containers import tiff_directory as tags
from model.images.containers.tiff_directory import TiffDirectory
from model.images.errors import InvalidImage, UnsupportedImage
from model.images.libtiff import has_codec

_JPEG, _OLD_JPEG = 7, 6
_COMPRESSIONS = {
    1: "no compression",
    2: "CCITT compression",
    3: "CCITT group 3 compression",
    4: "CCITT group 4 compression",
    5: "LZW compression",
    _OLD_JPEG: "old-style JPEG compression",
    _JPEG: "JPEG compression",
    8: "Deflate compression",
    32773: "PackBits compression",
    32946: "Deflate compression",
    34925: "LZMA compression",
    50000: "Zstandard compression",
    50001: "WebP compression",
}
_UNORDERED = frozenset({_OLD_JPEG, _JPEG, 50001})  # they have no order of bits
# Those that compress rows as bytes, of any meaning, and those of them that have predictors.
_BYTE_COMPRESSIONS = frozenset({1, 5, 8, 32773, 32946, 34925, 50000})
_PREDICTING_COMPRESSIONS = _BYTE_COMPRESSIONS - {1, 32773}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
_PHOTOMETRICS = {
    WHITE_IS_ZERO: "grey",
    BLACK_IS_ZERO: "grey",
    RGB: "RGB",
    PALETTE: "palette",
    4: "transparency mask",
    CMYK: "separated colours (CMYK)",
    YCBCR: "YCbCr",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
_UNDEFINED_FORMAT = 4
_FORMATS = {UNSIGNED: "unsigned", SIGNED: "signed", FLOAT: "float", 5: "complex", 6: "complex"}
_BITS = {
    UNSIGNED: frozenset({1, 2, 4, 8, 10, 12, 14, 16, 24, 32}),
    SIGNED: frozenset({8, 16, 32}),
    FLOAT: frozenset({16, 32, 64}),
}
_SEPARATE = 2
_ASSOCIATED_ALPHA = 1
_ALPHA_KINDS = frozenset({_ASSOCIATED_ALPHA, 2, 999})  # 999: of Corel Draw
NO_PREDICTOR, DIFFERENCES, FLOAT_DIFFERENCES = 1, 2, 3
_PREDICTED_BITS = {
    NO_PREDICTOR: frozenset(range(1, 65)),
    DIFFERENCES: frozenset({8, 16, 32, 64}),
    FLOAT_DIFFERENCES: frozenset({16, 32, 64}),
}
_MAX_SAMPLES = 16
STRIP_PIXELS = 1 << 18  # that `model.images.tiff_samples` converts at a time, in whole rows
_CMYK_INKS = 1


@dataclass(frozen=True)
class TiffLayout:
    """The samples of an image, by its directory.

    Attributes:
        size: width and height as stored.
        photometric: what the samples mean.
        compression: the number of the method.
        bits: per sample.
        sample_format: `UNSIGNED`, `SIGNED` or `FLOAT`.
        samples: per pixel.
        colours: how many of them are colours; the others come after.
        has_alpha: whether the sample after the colours is alpha.
        is_associated: whether the colours are multiplied by alpha.
        planes: 1, or the number of samples if each is stored separately.
        predictor: of the compression.
        order: "<" or ">", of the bytes of a sample.
        fill_order: 1, or 2 if the bits of each byte are in reverse order.
        tile_size: width and height of a tile, or of a strip.
        is_tiled: whether these are tiles.
    """

    size: tuple[int, int]
    photometric: int
    compression: int
    bits: int
    sample_format: int
    samples: int
    colours: int
    has_alpha: bool
    is_associated: bool
    planes: int
    predictor: int
    order: str
    fill_order: int
    tile_size: tuple[int, int]
    is_tiled: bool

    @property
    def tiles(self) -> tuple[int, int]:
        """The number of tiles or strips across and down."""
        return -(-self.size[0] // self.tile_size[0]), -(-self.size[1] // self.tile_size[1])

    @property
    def tile_row_bytes(self) -> int:
        """The number of bytes of one row of a tile or strip, in one plane."""
        return (self.tile_size[0] * (self.samples // self.planes) * self.bits + 7) // 8

    @property
    def is_uncompressed(self) -> bool:
        """Whether the samples are stored as they are, and none is left out."""
        is_subsampled = self.photometric == YCBCR and self.samples > 1
        return self.compression == 1 and not is_subsampled

    @property
    def is_read_as_bytes(self) -> bool:
        """Whether Pillow only decompresses; it decodes the most usual kinds by itself."""
        if self.compression not in _BYTE_COMPRESSIONS:
            # Planes that are JPEG files each are grey images.
            return self.compression == _JPEG and self.planes > 1
        is_usual = (
            self.sample_format == UNSIGNED
            and self.planes == 1
            and (self.bits == 8 or (self.bits < 8 and self.samples == 1))  # noqa: PLR2004
            and (self.fill_order == 1 or self.samples == 1)
            and not self.is_associated
            and not (self.photometric == CMYK and self.has_alpha)
        )
        return not is_usual


def read_layout(directory: TiffDirectory) -> TiffLayout:
    """Reads what the samples of an image are.

    Raises:
        InvalidImage: for an image or tiles without pixels.
        UnsupportedImage: for a kind that cannot be decoded, which the message names.
    """
    compression = directory.integer(tags.COMPRESSION, 1)
    photometric = directory.integer(tags.PHOTOMETRIC, WHITE_IS_ZERO)
    if compression == _OLD_JPEG:
        photometric = YCBCR
    is_jpeg = compression in {_JPEG, _OLD_JPEG} and photometric in {RGB, YCBCR}
    samples = directory.integer(tags.SAMPLES_PER_PIXEL, 3 if is_jpeg else 1)
    colours = 1 if photometric == YCBCR and samples == 1 else _COLOURS.get(photometric, samples)
    alpha = directory.integer(tags.EXTRA_SAMPLES, 0)
    if photometric == RGB and tags.EXTRA_SAMPLES not in directory.entries:
        alpha = 2  # of a fourth sample that is not explained
    bits, formats = (directory.integers(tag) for tag in (tags.BITS_PER_SAMPLE, tags.SAMPLE_FORMAT))
    predictor = directory.integer(tags.PREDICTOR, NO_PREDICTOR)
    is_separate = directory.integer(tags.PLANAR_CONFIGURATION, 1) == _SEPARATE
    layout = TiffLayout(
        size=(directory.integer(tags.IMAGE_WIDTH, 0), directory.integer(tags.IMAGE_LENGTH, 0)),
        photometric=photometric,
        compression=compression,
        bits=int(bits[0]) if len(bits) else 1,
        sample_format=_sample_format(formats),
        samples=samples,
        colours=colours,
        has_alpha=samples > colours and alpha in _ALPHA_KINDS,
        is_associated=samples > colours and alpha == _ASSOCIATED_ALPHA,
        planes=samples if is_separate else 1,
        predictor=predictor if compression in _PREDICTING_COMPRESSIONS else NO_PREDICTOR,
        order=directory.order,
        fill_order=1 if compression in _UNORDERED else directory.integer(tags.FILL_ORDER, 1),
        tile_size=_tile_size(directory),
        is_tiled=tags.TILE_WIDTH in directory.entries,
    )
    _check_raw(directory)
    if len(set(bits[:samples])) > 1 or len(set(formats[:samples])) > 1:
        raise UnsupportedImage("TIFF images with samples of different kinds are not supported")
    _check_kind(directory, layout)
    return layout


def unsupported_kind(layout: TiffLayout) -> UnsupportedImage:
    """Returns the error that says of what kind an image is."""
    photometric = _PHOTOMETRICS.get(layout.photometric, f"photometric {layout.photometric}")
    compression = _COMPRESSIONS.get(layout.compression, f"compression {layout.compression}")
    kind = _FORMATS.get(layout.sample_format, "unknown")
    planes = ", separate planes" if layout.planes > 1 else ""
    return UnsupportedImage(
        f"this kind of TIFF is not supported: {photometric}, {layout.samples} samples per pixel "
        f"({kind}, {layout.bits} bits){planes}, {compression}; send 8-bit RGB"
    )


def _sample_format(formats: npt.NDArray[np.int64]) -> int:
    first = int(formats[0]) if len(formats) else UNSIGNED
    return UNSIGNED if first == _UNDEFINED_FORMAT else first


def _tile_size(directory: TiffDirectory) -> tuple[int, int]:
    """Returns width and height of a tile; of a strip, no more than the image's."""
    if tags.TILE_WIDTH in directory.entries:
        return directory.integer(tags.TILE_WIDTH, 0), directory.integer(tags.TILE_LENGTH, 0)
    height = directory.integer(tags.IMAGE_LENGTH, 0)
    rows = directory.integer(tags.ROWS_PER_STRIP, height) or height
    return directory.integer(tags.IMAGE_WIDTH, 0), min(rows, height)


def _check_raw(directory: TiffDirectory) -> None:
    """Refuses cameras' raw files, whose first image is only a small preview."""
    is_preview = directory.integer(tags.NEW_SUBFILE_TYPE, 0) & 1
    if tags.DNG_VERSION in directory.entries or (
        is_preview and tags.SUB_DIRECTORIES in directory.entries
    ):
        raise UnsupportedImage("raw images of cameras are not supported; send JPEG, PNG or TIFF")


def _check_kind(directory: TiffDirectory, layout: TiffLayout) -> None:
    """Refuses what neither Pillow nor `model.images.tiff_samples` can decode."""
    if min(*layout.size, *layout.tile_size) < 1:
        raise InvalidImage(
            "the TIFF image has no pixels: its header says {} x {}, in parts of {} x {}".format(
                *layout.size, *layout.tile_size
            )
        )
    is_known = (
        layout.photometric in _COLOURS
        and layout.compression in _COMPRESSIONS
        and has_codec(layout.compression)
        and layout.colours <= layout.samples <= _MAX_SAMPLES
        and layout.bits in _BITS.get(layout.sample_format, ())
    )
    if not is_known:
        raise unsupported_kind(layout)
    if layout.photometric == CMYK and directory.integer(tags.INK_SET, _CMYK_INKS) != _CMYK_INKS:
        raise UnsupportedImage("TIFF images of other inks than CMYK are not supported")
    if layout.is_read_as_bytes:
        _check_bytes(directory, layout)


def _check_bytes(directory: TiffDirectory, layout: TiffLayout) -> None:
    """Refuses what `model.images.tiff_samples` cannot decode."""
    is_subsampled = layout.photometric == YCBCR and set(
        directory.integers(tags.YCBCR_SUBSAMPLING)
    ) != {1}
    if (
        layout.photometric == PALETTE
        or (layout.photometric == YCBCR and layout.bits != 8)  # noqa: PLR2004
        or is_subsampled
        or layout.bits not in _PREDICTED_BITS.get(layout.predictor, ())
        or (layout.predictor == FLOAT_DIFFERENCES and layout.sample_format != FLOAT)
    ):
        raise unsupported_kind(layout)
