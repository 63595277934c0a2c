"""Writes HEIF files of a few items, which decoders read in place of the file that was sent."""

from __future__ import annotations

import struct
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from model.images.containers.heif_items import Property
from model.images.containers.iso_boxes import box, full_box

_BRANDS = {b"av01": (b"avif", b"mif1", b"miaf"), b"hvc1": (b"heic", b"mif1")}
_HIDDEN = 1


@dataclass(frozen=True)
class NewItem:
    """An item to be written.

    Attributes:
        kind: its type.
        key: items with equal keys have the same data, which are written once.
        data: of the item.
        properties: of the item, in their order.
    """

    kind: bytes
    key: Hashable
    data: bytes | memoryview
    properties: Sequence[Property]


@dataclass(frozen=True)
class Reference:
    """A reference between items, which are numbered from 1 on."""

    kind: bytes
    source: int
    targets: Sequence[int]


def heif_file(codec: bytes, items: Sequence[NewItem], references: Sequence[Reference]) -> bytes:
    """Returns a file.

    Args:
        codec: "av01" or "hvc1".
        items: the first is the primary one; the others are hidden.
        references: in any order.
    """
    brands = _BRANDS[codec]
    start = box(b"ftyp", brands[0], bytes(4), *brands)
    offsets: dict[Hashable, int] = {}
    parts: list[bytes | memoryview] = []
    end = 0
    for item in items:
        if item.key not in offsets:
            offsets[item.key] = end
            parts.append(item.data)
            end += len(item.data)
    places = [offsets[item.key] for item in items]
    without_data = len(start) + len(_meta(items, references, places)) + len(box(b"mdat"))
    meta = _meta(items, references, [without_data + place for place in places])
    return b"".join((start, meta, box(b"mdat", *parts)))


def _meta(
    items: Sequence[NewItem], references: Sequence[Reference], offsets: Sequence[int]
) -> bytes:
    kinds, places = [], []
    for number, (item, offset) in enumerate(zip(items, offsets, strict=True), 1):
        kind = struct.pack(">HH4s", number, 0, item.kind)
        kinds.append(full_box(b"infe", 2, _HIDDEN * (number > 1), kind, b"\x00"))
        places.append(struct.pack(">HHHII", number, 0, 1, offset, len(item.data)))
    num_items = struct.pack(">H", len(items))
    targets = [
        box(
            each.kind,
            struct.pack(f">HH{len(each.targets)}H", each.source, len(each.targets), *each.targets),
        )
        for each in references
    ]
    return full_box(
        b"meta",
        0,
        0,
        full_box(b"hdlr", 0, 0, struct.pack(">I4s12xx", 0, b"pict")),
        full_box(b"pitm", 0, 0, struct.pack(">H", 1)),
        full_box(b"iloc", 0, 0, b"\x44\x00", num_items, *places),
        full_box(b"iinf", 0, 0, num_items, *kinds),
        *([full_box(b"iref", 0, 0, *targets)] if targets else []),
        _properties(items),
    )


def _properties(items: Sequence[NewItem]) -> bytes:
    """Returns iprp; properties that items share are written once."""
    numbers: dict[tuple[bytes, bytes], int] = {}
    associations = []
    for number, item in enumerate(items, 1):
        associations.append(struct.pack(">HB", number, len(item.properties)))
        for each in item.properties:
            index = numbers.setdefault((each.kind, bytes(each.body)), len(numbers) + 1)
            associations.append(struct.pack(">H", each.is_essential << 15 | index))
    known = [box(kind, body) for kind, body in numbers]
    count = struct.pack(">I", len(items))
    return box(b"iprp", box(b"ipco", *known), full_box(b"ipma", 0, 1, count, *associations))
