"""AVIF and HEIC: the items that the pixels of the primary image need (ISO/IEC 23008-12).

The size of the image, of its tiles and of the coded pictures, their number, and the orientation are
read here. The decoder gets a new file, of the primary image with its tiles and its transparency.
As in other readers of HEIF, the orientation is that of the properties `irot` and `imir`; that of
EXIF and XMP repeats it and does not count.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import floor

from model.images.containers.coded_pictures import Coded, av1_pictures, hevc_pictures
from model.images.containers.heif_items import HeifItems, Property, read_items
from model.images.containers.heif_writer import NewItem, Reference, heif_file
from model.images.containers.iso_boxes import Fields
from model.images.containers.source import ImageSource
from model.images.errors import ImageTooLarge, InvalidImage, UnsupportedImage
from model.images.heif_decoders import check_decoder
from model.images.limits import ImageLimits, check_pixel_count
from model.images.orientation import AS_STORED, after

_CODECS: dict[bytes, tuple[str, bytes, Callable[[memoryview, memoryview], Coded]]] = {
    b"av01": ("AVIF", b"av1C", av1_pictures),
    b"hvc1": ("HEIF", b"hvcC", hevc_pictures),
}
_OTHER_CODECS = {
    b"avc1": "H.264",
    b"hev1": "HEVC with parameter sets in its data",
    b"iden": "another image, transformed",
    b"iovl": "overlaid images",
    b"j2k1": "JPEG 2000",
    b"jpeg": "JPEG",
    b"mski": "a mask",
    b"tili": "tiles of the item type tili",
    b"unci": "uncompressed pixels",
    b"vvc1": "VVC",
}
# `colr` only as `nclx`: an ICC profile is metadata.
_KEPT = frozenset({b"ispe", b"pixi", b"colr", b"auxC", b"av1C", b"hvcC", b"a1op", b"lsel", b"a1lx"})
_TRANSFORMATIONS = frozenset({b"clap", b"irot", b"imir"})
# Shape of pixels and light of the scene; files may say that a reader must know them.
_WITHOUT_EFFECT = frozenset({b"pasp", b"clli", b"mdcv", b"amve", b"cclv", b"udes"})
_MAX_PROPERTY_BYTES = 1 << 14
_MAX_UNITS = 1 << 16  # of coded data in all tiles; an image has a few per tile
_MAX_TILES = 960  # libheif reads 1000 items
_MAX_PICTURES = 8  # of one item; layers of AV1
_ROTATIONS = (AS_STORED, 8, 3, 6)  # by quarter turns against the clock
_MIRRORINGS = (4, 2)  # top to bottom, left to right
_ALPHA_KINDS = (
    b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha",
    b"urn:mpeg:hevc:2015:auxid:1",
    b"urn:mpeg:avc:2015:auxid:1",
)


def read_heif(data: bytes | memoryview, limits: ImageLimits) -> ImageSource:
    """Returns a HEIF file with the primary image only, as it is stored.

    Raises:
        InvalidImage: for a file that is broken or made of too many pieces.
        UnsupportedImage: for an unknown codec, and a file that is only an image sequence.
        ImageTooLarge: for too many pixels, in the image, its tiles or the coded pictures.
    """
    with _broken_boxes_as_invalid_image():
        items = read_items(memoryview(data))
        image = _image(items, items.primary)
        alpha = next((_image(items, item) for item in _alpha_items(items)), None)
        crop, orientation = _transformations(items, image)
        images = [image] if alpha is None else [image, alpha]
        _check_bytes(items, images, limits)
        costs = [_check_image(items, each, limits) for each in images]
    codec = items.kinds[image.coded[0]]
    return ImageSource(
        _with_images(codec, items, images),
        orientation,
        format=_CODECS[codec][0],
        crop=crop,
        coded_pixels=sum(costs),
    )


def read_heif_size(data: bytes | memoryview) -> tuple[tuple[int, int], int]:
    """Returns width and height, before rotation, and the orientation of the primary image.

    Raises:
        InvalidImage, UnsupportedImage: as `read_heif`.
    """
    with _broken_boxes_as_invalid_image():
        items = read_items(memoryview(data))
        image = _image(items, items.primary)
        crop, orientation = _transformations(items, image)
    left, top, right, bottom = crop or (0, 0, *image.size)
    return (right - left, bottom - top), orientation


@contextmanager
def _broken_boxes_as_invalid_image() -> Iterator[None]:
    try:
        yield
    except struct.error as error:
        raise InvalidImage(
            f"the HEIF image cannot be decoded: it is truncated, or a box is broken ({error})"
        ) from error


@dataclass(frozen=True)
class _Image:
    """An image of a file.

    Attributes:
        item: its number.
        size: width and height.
        coded: the items with its pixels: itself, or its tiles by rows.
        grid: rows and columns of tiles; None if it has none.
    """

    item: int
    size: tuple[int, int]
    coded: tuple[int, ...]
    grid: tuple[int, int] | None


def _image(items: HeifItems, item: int) -> _Image:
    """Reads size and tiles of an image, and checks that its codec is supported."""
    if items.kinds.get(item) != b"grid":
        image = _Image(item, _size(items, item), (item,), None)
    else:
        fields = Fields(items.data(item))
        fields.take(1)
        side_bytes = 4 if fields.take(1) & 1 else 2
        rows, columns = fields.take(1) + 1, fields.take(1) + 1
        size = fields.take(side_bytes), fields.take(side_bytes)
        tiles = tuple(items.references.get((b"dimg", item), ()))
        if rows * columns > _MAX_TILES:
            raise InvalidImage(
                f"the HEIF image has {rows * columns} tiles; at most {_MAX_TILES} are read"
            )
        if len(tiles) != rows * columns:
            raise InvalidImage(
                f"the HEIF image cannot be decoded: it has {len(tiles)} tiles of {rows * columns}"
            )
        image = _Image(item, size, tiles, (rows, columns))
    kinds = {items.kinds.get(each) for each in image.coded}
    for kind in kinds:
        if kind is None:
            raise InvalidImage("the HEIF image cannot be decoded: one of its items is missing")
        if kind not in _CODECS:
            name = _OTHER_CODECS.get(kind, f"the item type {str(kind)[2:-1]}")
            raise UnsupportedImage(f"HEIF images with {name} inside are not supported")
        check_decoder(_CODECS[kind][0])
    if len(kinds) > 1:
        raise UnsupportedImage("HEIF images with tiles of several codecs are not supported")
    for each in {item, *image.coded}:
        for kind, _, is_essential in items.properties(each):
            if is_essential and kind not in _KEPT | _TRANSFORMATIONS | _WITHOUT_EFFECT:
                raise UnsupportedImage(
                    f"HEIF images with the property {str(kind)[2:-1]} are not supported"
                )
    return image


def _size(items: HeifItems, item: int) -> tuple[int, int]:
    body = items.property(item, b"ispe")
    if body is None:
        raise InvalidImage(f"the HEIF image cannot be decoded: its item {item} has no size")
    width, height = struct.unpack_from(">II", body, 4)
    return width, height


def _alpha_items(items: HeifItems) -> Iterator[int]:
    """Yields the images with the transparency of the primary image."""
    for (kind, source), targets in items.references.items():
        if kind == b"auxl" and items.primary in targets:
            name = items.property(source, b"auxC")
            if name is not None and bytes(name[4:]).partition(b"\x00")[0] in _ALPHA_KINDS:
                yield source


def _transformations(
    items: HeifItems, image: _Image
) -> tuple[tuple[int, int, int, int] | None, int]:
    """Returns the part of the image to be shown, as it is stored, and its orientation."""
    crop, orientation = None, AS_STORED
    for kind, body, _ in items.properties(image.item):
        if kind == b"clap":
            if orientation != AS_STORED or crop is not None:
                raise UnsupportedImage(
                    "HEIF images that are rotated and then cropped are not supported"
                )
            crop = _clean_aperture(body, image.size)
        elif kind == b"irot":
            orientation = after(_ROTATIONS[Fields(body).take(1) & 3], orientation)
        elif kind == b"imir":
            orientation = after(_MIRRORINGS[Fields(body).take(1) & 1], orientation)
    return crop, orientation


def _clean_aperture(body: memoryview, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns left, top, right and bottom of `clap` (ISO/IEC 14496-12, section 12.1.4)."""
    numbers = struct.unpack_from(">IIIIiIiI", body)
    if not all(numbers[1::2]):
        raise InvalidImage("the HEIF image cannot be decoded: its clean aperture is broken")
    width, height, right, down = map(Fraction, numbers[::2], numbers[1::2])
    first, last = [], []
    # Between two pixels libheif begins with the left and the lower one.
    for side, clean, offset, rounding in (
        (size[0], width, right, Fraction(0)),
        (size[1], height, down, Fraction(1, 2)),
    ):
        start = max(0, floor(offset + Fraction(side - 1, 2) - (clean - 1) / 2 + rounding))
        first.append(start)
        last.append(min(side, start + floor(clean)))
    if first[0] >= last[0] or first[1] >= last[1]:
        raise InvalidImage("the HEIF image has no pixels: its clean aperture is empty")
    return first[0], first[1], last[0], last[1]


def _check_bytes(items: HeifItems, images: list[_Image], limits: ImageLimits) -> None:
    """Checks the length of all data together: items may share the bytes of a file."""
    num_bytes = sum(items.num_bytes(item) for image in images for item in image.coded)
    if num_bytes > limits.max_bytes:
        raise ImageTooLarge(
            f"the tiles of the HEIF image have {num_bytes} bytes; at most {limits.max_bytes} are "
            "accepted"
        )


def _check_image(items: HeifItems, image: _Image, limits: ImageLimits) -> int:
    """Checks the sizes of an image, its tiles and its coded pictures.

    Returns:
        How many pixels are decoded; those of more than 8 bits count twice.
    """
    check_pixel_count(image.size, limits)
    check_pixel_count(_size(items, image.item), limits)
    if image.grid is not None:
        _check_grid(items, image, limits)
    num_pixels = num_units = 0
    for item, times in Counter(image.coded).items():
        check_pixel_count(_size(items, item), limits)
        coded = _coded(items, item, limits)
        num_units += coded.num_units
        if num_units > _MAX_UNITS:
            raise InvalidImage(f"the HEIF image has more than {_MAX_UNITS} pieces")
        weight = 2 if coded.is_deep else 1
        num_pixels += times * weight * coded.max_pixels * coded.num_pictures
    return num_pixels


def _check_grid(items: HeifItems, image: _Image, limits: ImageLimits) -> None:
    assert image.grid is not None
    rows, columns = image.grid
    width, height = _size(items, image.coded[0])
    check_pixel_count((columns * width, rows * height), limits)
    if columns * width < image.size[0] or rows * height < image.size[1]:
        raise InvalidImage("the HEIF image cannot be decoded: its tiles do not cover it")


def _coded(items: HeifItems, item: int, limits: ImageLimits) -> Coded:
    """Reads the headers of an item's coded pictures, and checks their size and number."""
    _, config_kind, read_pictures = _CODECS[items.kinds[item]]
    config = items.property(item, config_kind)
    if config is None or len(config) > _MAX_PROPERTY_BYTES:
        raise InvalidImage("the HEIF image cannot be decoded: its codec's configuration is missing")
    coded = read_pictures(config, items.data(item))
    check_pixel_count(coded.size, limits)
    if coded.num_pictures > _MAX_PICTURES:
        raise InvalidImage(
            f"the HEIF image has {coded.num_pictures} pictures in one item; at most "
            f"{_MAX_PICTURES} are read"
        )
    if not coded.num_pictures:
        raise InvalidImage("the HEIF image cannot be decoded: it has no pixels")
    return coded


def _with_images(codec: bytes, items: HeifItems, images: list[_Image]) -> bytes:
    """Returns a file of the image and, if there is a second one, its transparency."""
    new: list[NewItem] = []
    references = []
    numbers = []
    for image in images:
        number = len(new) + 1
        numbers.append(number)
        new.append(_copied(items, image.item))
        if image.grid is not None:
            new += [_copied(items, tile) for tile in image.coded]
            references.append(Reference(b"dimg", number, range(number + 1, len(new) + 1)))
    if len(images) > 1:
        references.append(Reference(b"auxl", numbers[1], numbers[:1]))
        if images[1].item in items.references.get((b"prem", images[0].item), ()):
            references.append(Reference(b"prem", numbers[0], numbers[1:]))
    return heif_file(codec, new, references)


def _copied(items: HeifItems, item: int) -> NewItem:
    kept: dict[bytes, Property] = {}  # the first of each type
    for each in items.properties(item):
        is_icc = each.kind == b"colr" and bytes(each.body[:4]) != b"nclx"
        if each.kind in _KEPT and not is_icc and len(each.body) <= _MAX_PROPERTY_BYTES:
            kept.setdefault(each.kind, each)
    return NewItem(items.kinds[item], items.extents(item), items.data(item), [*kept.values()])
