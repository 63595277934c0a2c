"""AVIF and HEIC files with properties, tiles and items that their encoders do not write."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from PIL import Image

from model.images import heif_decoders
from model.images.containers.heif_items import HeifItems, Property, read_items
from model.images.containers.heif_writer import NewItem, Reference, heif_file
from tests.support.decoder_images import corners, encode

CODECS = {"AVIF": b"av01", "HEIF": b"hvc1"}
heif_decoders.register()


def encoded(form: str, image: Image.Image | None = None, **options: object) -> bytes:
    """The image, or large corners, as encoders write it; 4:4:4, so that colours have edges."""
    chroma = {"subsampling": "4:4:4"} if form == "AVIF" else {"chroma": 444}
    scene = corners().resize((128, 64), Image.Resampling.NEAREST) if image is None else image
    return encode(scene, form, **{"quality": 95, **chroma, **options})


def items_of(data: bytes) -> HeifItems:
    return read_items(memoryview(data))


def first_item(data: bytes, *added: Property, without: Sequence[bytes] = ()) -> NewItem:
    """The primary item with other properties."""
    items = items_of(data)
    kept = [each for each in items.properties(items.primary) if each.kind not in without]
    kind = items.kinds[items.primary]
    return NewItem(kind, "first", items.data(items.primary), [*kept, *added])


def prop(kind: bytes, body: bytes) -> Property:
    return Property(kind, memoryview(body), is_essential=kind in {b"irot", b"imir", b"clap"})


def size(width: int, height: int) -> Property:
    return prop(b"ispe", struct.pack(">III", 0, width, height))


def with_properties(form: str, data: bytes, *added: Property) -> bytes:
    without = [each.kind for each in added if each.kind == b"ispe"]
    return heif_file(CODECS[form], [first_item(data, *added, without=without)], [])


def with_exif(form: str, data: bytes, exif: bytes, *added: Property) -> bytes:
    """With an item of EXIF, as it is, next to the image."""
    payload = struct.pack(">I", 0) + exif
    items = [first_item(data, *added), NewItem(b"Exif", "exif", payload, [])]
    return heif_file(CODECS[form], items, [Reference(b"cdsc", 2, [1])])


def grid(
    form: str, tiles: Sequence[bytes], rows: int, columns: int, shown: tuple[int, int]
) -> bytes:
    """An image of tiles, by rows."""
    parts = [first_item(tile) for tile in tiles]
    layout = struct.pack(">4B2H", 0, 0, rows - 1, columns - 1, *shown)
    shared = [each for each in parts[0].properties if each.kind in {b"pixi", b"colr"}]
    whole = NewItem(b"grid", "grid", layout, [size(*shown), *shared])
    numbered = [
        NewItem(part.kind, (number, len(tiles)), part.data, part.properties)
        for number, part in enumerate(parts)
    ]
    references = [Reference(b"dimg", 1, range(2, len(parts) + 2))]
    return heif_file(CODECS[form], [whole, *numbered], references)
