"""Sizes and numbers of the pictures that AV1 and HEVC data contain, by their headers.

They can differ from what the file around them states, and decoders allocate memory for them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from model.images.containers.iso_boxes import Fields
from model.images.errors import InvalidImage

_MAX_UNITS = 1 << 16  # of a picture: OBUs of AV1, NAL units of HEVC
# AV1 (https://aomediacodec.github.io/av1-spec/, sections 5.3 and 5.5)
_AV1_CONFIG_BYTES = 4
_AV1_DEPTH_BYTE, _AV1_DEEP = 2, 0x40
_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6
# HEVC (ITU-T H.265, sections 7.3 and 7.4; ISO/IEC 14496-15 for its place in files)
_HEVC_CONFIG_BYTES = 21  # before the length of lengths and the parameter sets
_HEVC_DEPTH_BYTE = 17  # of the luma samples, less 8
_SPS = 33
_NUM_SLICE_TYPES = 32
_HEADER_START_BYTES = 512  # of a parameter set; its size comes first
_PROFILE_BITS, _LEVEL_BITS = 88, 8
_MAX_SUB_LAYERS = 8
_SEPARATE_PLANES_FORMAT = 3
_LONGEST_EXP_GOLOMB = 32


class Coded(NamedTuple):
    """What a decoder of the data allocates and runs through."""

    size: tuple[int, int]  # width and height; (0, 0) if no header states them
    max_pixels: int  # of a picture, which may state another size in its own header
    num_pictures: int
    is_deep: bool  # more than 8 bits, by the configuration
    num_units: int  # OBUs or NAL units


class _Bits:
    """Reads bits from the most significant one on."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._value = int.from_bytes(data)
        self._left = 8 * len(data)

    def take(self, num_bits: int) -> int:
        self._left -= num_bits
        if self._left < 0:
            raise struct.error("bits are missing")
        return self._value >> self._left & ((1 << num_bits) - 1)

    def take_exp_golomb(self) -> int:
        """`ue(v)` of H.265 and `uvlc()` of AV1."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > _LONGEST_EXP_GOLOMB:
                raise struct.error("a number is too long")
        return (1 << zeros) - 1 + self.take(zeros)


def av1_pictures(config: memoryview, data: memoryview) -> Coded:
    """Reads the headers of AV1 data.

    Args:
        config: the body of av1C.
        data: of the item.

    Raises:
        InvalidImage: for too many OBUs.
        struct.error: for a header that is cut off.
    """
    size, max_pixels, num_pictures, num_units = (0, 0), 0, 0, 0
    for part in (config[_AV1_CONFIG_BYTES:], data):
        for kind, body in _obus(part):
            num_units += 1
            num_pictures += kind in {_FRAME_HEADER, _FRAME}
            if kind == _SEQUENCE_HEADER:
                stated, largest = _av1_size(_Bits(body[:_HEADER_START_BYTES]))
                size = max(size, stated, key=_area)
                max_pixels = max(max_pixels, largest)
    is_deep = len(config) > _AV1_DEPTH_BYTE and bool(config[_AV1_DEPTH_BYTE] & _AV1_DEEP)
    return Coded(size, max_pixels, num_pictures, is_deep, num_units)


def hevc_pictures(config: memoryview, data: memoryview) -> Coded:
    """Reads the headers of HEVC data.

    Args:
        config: the body of hvcC.
        data: of the item.

    Raises:
        InvalidImage: for too many NAL units.
        struct.error: for a header that is cut off.
    """
    fields = Fields(config)
    fields.take_bytes(_HEVC_CONFIG_BYTES)
    length_size = (fields.take(1) & 3) + 1
    units: list[bytes | memoryview] = []
    for _ in range(fields.take(1)):
        fields.take(1)
        units += [fields.take_bytes(fields.take(2)) for _ in range(fields.take(2))]
    size, num_pictures = (0, 0), 0
    units += _nal_units(data, length_size)
    for unit in units:
        if len(unit) <= 2 or (unit[0] & 1) << 5 | unit[1] >> 3:  # noqa: PLR2004
            continue  # of another layer, which is not decoded
        kind = unit[0] >> 1 & 63
        num_pictures += kind < _NUM_SLICE_TYPES and unit[2] >> 7
        if kind == _SPS:
            size = max(size, _hevc_size(bytes(unit[2:_HEADER_START_BYTES])), key=_area)
    return Coded(size, _area(size), num_pictures, bool(config[_HEVC_DEPTH_BYTE] & 7), len(units))


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _obus(view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields type and body of each OBU, the last one up to the end of the data."""
    position = 0
    for _ in range(_MAX_UNITS):
        if position >= len(view):
            return
        head = view[position]
        position += 2 if head & 4 else 1
        length = len(view) - position
        if head & 2:
            length = 0
            for number in range(8):
                if position >= len(view):
                    raise struct.error("an OBU is cut off")
                length |= (view[position] & 127) << 7 * number
                position += 1
                if view[position - 1] < 128:  # noqa: PLR2004
                    break
        yield head >> 3 & 15, view[position : position + length]
        position += length
    raise InvalidImage(f"the AVIF image has more than {_MAX_UNITS} pieces")


def _nal_units(view: memoryview, length_size: int) -> Iterator[memoryview]:
    position = 0
    for _ in range(_MAX_UNITS):
        start = position + length_size
        if start > len(view):
            return
        position = start + int.from_bytes(view[position:start])
        yield view[start:position]
    raise InvalidImage(f"the HEIF image has more than {_MAX_UNITS} pieces")


def _av1_size(bits: _Bits) -> tuple[tuple[int, int], int]:
    """Reads `sequence_header_obu()` up to the size.

    Returns:
        Width and height, and how many pixels a frame can have: its own header may state other
        sizes of the same number of bits, unless the sequence is one still picture.
    """
    bits.take(4)  # profile, still_picture
    is_reduced = bits.take(1)
    if is_reduced:
        bits.take(5)
    else:
        _skip_av1_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    size = bits.take(width_bits) + 1, bits.take(height_bits) + 1
    return size, _area(size) if is_reduced else 1 << (width_bits + height_bits)


def _skip_av1_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.take(1):  # timing information
        bits.take(64)
        if bits.take(1):
            bits.take_exp_golomb()
        if bits.take(1):  # decoder model
            delay_bits = bits.take(5) + 1
            bits.take(42)
    has_display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:  # noqa: PLR2004 - levels from 4.0 on have a tier
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if has_display_delay and bits.take(1):
            bits.take(4)


def _hevc_size(sps: bytes) -> tuple[int, int]:
    """Reads `seq_parameter_set_rbsp()` up to the size: width and height."""
    bits = _Bits(sps.replace(b"\x00\x00\x03", b"\x00\x00"))
    bits.take(4)
    sub_layers = bits.take(3)
    bits.take(1 + _PROFILE_BITS + _LEVEL_BITS)
    present = [(bits.take(1), bits.take(1)) for _ in range(sub_layers)]
    if sub_layers:
        bits.take(2 * (_MAX_SUB_LAYERS - sub_layers))
    for has_profile, has_level in present:
        bits.take(_PROFILE_BITS * has_profile + _LEVEL_BITS * has_level)
    bits.take_exp_golomb()  # number of the parameter set
    if bits.take_exp_golomb() == _SEPARATE_PLANES_FORMAT:
        bits.take(1)
    return bits.take_exp_golomb(), bits.take_exp_golomb()
