"""Counts the fields of a protobuf message before it is parsed.

Two bytes on the wire can become an object of a hundred bytes in memory (an empty message in a
list), and one byte a number of eight (in a packed list), so a large request that consists only of
those would take gigabytes. Requests for images have few fields and much data: counting skips the
data and takes microseconds.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES = {_FIXED64: 8, _FIXED32: 4}
_LONGEST_VARINT = 10  # bytes
_LAST_BYTES = bytes(range(0x80))  # of numbers of variable length: the highest bit is not set
_LENGTH_DELIMITED = frozenset(
    {
        FieldDescriptor.TYPE_STRING,
        FieldDescriptor.TYPE_BYTES,
        FieldDescriptor.TYPE_MESSAGE,
        FieldDescriptor.TYPE_GROUP,
    }
)
_ELEMENT_SIZES = {  # bytes of numbers of fixed size
    FieldDescriptor.TYPE_FIXED32: 4,
    FieldDescriptor.TYPE_SFIXED32: 4,
    FieldDescriptor.TYPE_FLOAT: 4,
    FieldDescriptor.TYPE_FIXED64: 8,
    FieldDescriptor.TYPE_SFIXED64: 8,
    FieldDescriptor.TYPE_DOUBLE: 8,
}


class BrokenMessage(ValueError):
    """Bytes that are not a message."""


def has_more_fields(data: bytes, descriptor: Any, limit: int) -> bool:
    """Counts the fields of a message and of all messages inside it.

    The elements of a packed list of numbers count in addition to its field.

    Args:
        data: a serialized message.
        descriptor: of its type; says which fields hold messages.
        limit: counting stops above it.

    Returns:
        Whether there are more than `limit`.

    Raises:
        BrokenMessage: for bytes that cannot be of that type.
    """
    count = 0
    pending = [(0, len(data), descriptor)]
    while pending:
        position, end, owner = pending.pop()
        fields = owner.fields_by_number
        while position < end:
            count += 1
            if count > limit:
                return True
            tag, position = _read_varint(data, position)
            kind = tag & 7
            if kind == _VARINT:
                _, position = _read_varint(data, position)
                continue
            if kind != _BYTES and kind not in _FIXED_SIZES:
                raise BrokenMessage(f"wire type {kind}")
            size = _FIXED_SIZES.get(kind)
            if size is None:
                size, position = _read_varint(data, position)
                field = fields.get(tag >> 3)
                if field is not None and field.message_type is not None:
                    pending.append((position, position + size, field.message_type))
                elif field is not None and _may_be_packed(field):
                    count += _num_elements(data, position, size, field.type, limit)
            position += size
        if position != end:
            raise BrokenMessage("a field goes beyond its message")
    return count > limit


def _may_be_packed(field: Any) -> bool:
    """Whether a field is a list of numbers: those are read in either form, declared or not."""
    return field.is_repeated and field.type not in _LENGTH_DELIMITED


def _num_elements(data: bytes, start: int, size: int, field_type: int, limit: int) -> int:
    """The number of elements of a packed list; any number above `limit` for more than those."""
    element_size = _ELEMENT_SIZES.get(field_type)
    if element_size is not None:
        return size // element_size
    if size > limit * _LONGEST_VARINT:
        return limit + 1
    numbers = data[start : start + size]
    return len(numbers) - len(numbers.translate(None, _LAST_BYTES))


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """A variable-length number, and the position after it."""
    value = 0
    for shift, byte in enumerate(data[position : position + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:  # noqa: PLR2004 - the highest bit: more bytes follow
            return value, position + shift + 1
    raise BrokenMessage("a number without an end")
