"""The items of a HEIF file: their types, data, properties and references (ISO/IEC 23008-12)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from model.images.containers.iso_boxes import Fields, boxes, first_boxes
from model.images.errors import InvalidImage, UnsupportedImage

# A phone writes about 100; an image of 200 megapixels in tiles, 800.
_MAX_ENTRIES = 1 << 14  # of each table: items, extents, associations, references
_IN_FILE, _IN_IDAT = 0, 1
_THIS_FILE = 0
_ITEM_TYPES_VERSION = 2  # of infe; older ones describe no images


class Extent(NamedTuple):
    """A range of bytes of an item's data."""

    method: int  # `_IN_FILE` or `_IN_IDAT`
    offset: int
    length: int  # 0: to the end


class Property(NamedTuple):
    """A property of an item."""

    kind: bytes
    body: memoryview
    is_essential: bool


@dataclass
class HeifItems:
    """The items of a file, by their numbers.

    Attributes:
        primary: the item to be shown.
        kinds: type of each item: "hvc1", "av01", "grid" and others.
        references: (type, from) -> to.
    """

    _file: memoryview
    _idat: memoryview
    primary: int
    kinds: dict[int, bytes] = field(default_factory=dict)
    references: dict[tuple[bytes, int], list[int]] = field(default_factory=dict)
    _extents: dict[int, tuple[Extent, ...]] = field(default_factory=dict)
    _properties: dict[int, list[Property]] = field(default_factory=dict)

    def extents(self, item: int) -> tuple[Extent, ...]:
        """Returns where the data of an item are.

        Raises:
            InvalidImage: for an item without data.
        """
        if item not in self._extents:
            raise InvalidImage(f"the HEIF image cannot be decoded: its item {item} has no data")
        return self._extents[item]

    def num_bytes(self, item: int) -> int:
        """Returns the length of an item's data.

        Raises:
            InvalidImage: as `data`.
        """
        return sum(map(len, self._parts(item)))

    def data(self, item: int) -> memoryview:
        """Returns the data of an item; a copy if they are in several places.

        Raises:
            InvalidImage: if they are missing or incomplete.
        """
        parts = list(self._parts(item))
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def properties(self, item: int) -> list[Property]:
        """Returns the properties of an item, in their order."""
        return self._properties.get(item, [])

    def property(self, item: int, kind: bytes) -> memoryview | None:
        """Returns the body of an item's first property of a type, or None."""
        return next((each.body for each in self.properties(item) if each.kind == kind), None)

    def _parts(self, item: int) -> Iterator[memoryview]:
        for method, offset, length in self.extents(item):
            source = self._idat if method == _IN_IDAT else self._file
            end = offset + length if length else len(source)
            if end > len(source) or offset >= end:
                raise InvalidImage("the HEIF image cannot be decoded: it is truncated")
            yield source[offset:end]


def read_items(data: memoryview) -> HeifItems:
    """Reads the tables of a file.

    Raises:
        InvalidImage: for tables that are missing or too long.
        UnsupportedImage: for a file that is only an image sequence.
        struct.error: for a table that is cut off.
    """
    top = first_boxes(data)
    if b"meta" not in top and b"moov" in top:
        raise UnsupportedImage("HEIF image sequences without a still image are not supported")
    if b"meta" not in top:
        raise InvalidImage("the HEIF image cannot be decoded: it is truncated, or has no images")
    meta = first_boxes(top[b"meta"][4:])
    if b"pitm" not in meta:
        raise InvalidImage("the HEIF image cannot be decoded: it names no primary image")
    fields = Fields(meta[b"pitm"])
    version, _ = fields.version_and_flags()
    items = HeifItems(data, meta.get(b"idat", data[:0]), fields.take(4 if version else 2))
    _read_kinds(items, meta.get(b"iinf", data[:0]))
    _read_extents(items, meta.get(b"iloc", data[:0]))
    if b"iref" in meta:
        _read_references(items, meta[b"iref"])
    if b"iprp" in meta:
        _read_properties(items, meta[b"iprp"])
    return items


def _check_count(count: int, what: str) -> None:
    if count > _MAX_ENTRIES:
        raise InvalidImage(f"the HEIF image has more than {_MAX_ENTRIES} {what}")


def _read_kinds(items: HeifItems, iinf: memoryview) -> None:
    version, _ = Fields(iinf).version_and_flags()
    for kind, body in boxes(iinf[8 if version else 6 :]):
        fields = Fields(body)
        version, _ = fields.version_and_flags()
        if kind == b"infe" and version >= _ITEM_TYPES_VERSION:
            item = fields.take(2 if version == _ITEM_TYPES_VERSION else 4)
            fields.take(2)  # protection
            items.kinds.setdefault(item, fields.take_bytes(4))


def _read_extents(items: HeifItems, iloc: memoryview) -> None:
    fields = Fields(iloc)
    version, _ = fields.version_and_flags()
    sizes = fields.take(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    id_size = 4 if version > 1 else 2
    num_items = fields.take(id_size)
    _check_count(num_items, "items")
    total = 0
    for _ in range(num_items):
        item = fields.take(id_size)
        method = fields.take(2) & 15 if version else _IN_FILE
        place = fields.take(2)
        base = fields.take(base_size)
        num_extents = fields.take(2)
        total += num_extents
        _check_count(total, "parts")
        extents = []
        for _ in range(num_extents):
            fields.take(index_size)
            offset, length = fields.take(offset_size), fields.take(length_size)
            extents.append(Extent(method, base + offset, length))
        if place == _THIS_FILE and method in {_IN_FILE, _IN_IDAT} and extents:
            items._extents.setdefault(item, tuple(extents))


def _read_references(items: HeifItems, iref: memoryview) -> None:
    version, _ = Fields(iref).version_and_flags()
    id_size = 4 if version else 2
    total = 0
    for kind, body in boxes(iref[4:]):
        fields = Fields(body)
        source, count = fields.take(id_size), fields.take(2)
        total += count
        _check_count(total, "references")
        targets = [fields.take(id_size) for _ in range(count)]
        items.references.setdefault((kind, source), targets)


def _read_properties(items: HeifItems, iprp: memoryview) -> None:
    known: list[tuple[bytes, memoryview]] = []
    total = 0
    for kind, body in boxes(iprp):
        if kind == b"ipco" and not known:
            known = list(boxes(body))
        if kind != b"ipma":
            continue
        fields = Fields(body)
        version, flags = fields.version_and_flags()
        num_items = fields.take(4)
        _check_count(num_items, "items")
        for _ in range(num_items):
            properties = items._properties.setdefault(fields.take(4 if version else 2), [])
            count = fields.take(1)
            total += count
            _check_count(total, "properties")
            for _ in range(count):
                size = 2 if flags & 1 else 1
                value = fields.take(size)
                essential = 1 << (8 * size - 1)
                number = value & ~essential
                if 1 <= number <= len(known):
                    properties.append(Property(*known[number - 1], bool(value & essential)))
