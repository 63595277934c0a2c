"""JPEG: segments before the first scan, the number of scans, and a missing end marker.

ISO/IEC 10918-1, annex B.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from model.images.containers.source import ImageSource
from model.images.errors import InvalidImage, UnsupportedImage
from model.images.limits import ImageLimits
from model.images.orientation import orientation_of

# Metadata of 64 MiB in the largest segments are a thousand.
_MAX_SEGMENTS = 1 << 16
_SEARCHED_BYTES = 1 << 16  # searched at a time: fits the cache
_MARKER = 0xFF
_SCAN = 0xDA
_END = 0xD9
_COMMENT = 0xFE
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a segment
_APPLICATION = range(0xE0, 0xF0)
_EXIF_OR_XMP = 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xCA})  # Huffman and arithmetic coding
_UNSUPPORTED_FRAMES = {
    0xC3: "lossless JPEG images",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical JPEG images"),
    0xCB: "lossless JPEG images",
    0xF7: "JPEG-LS images",
}
_SUPPORTED_BITS = 8
_SUPPORTED_COMPONENTS = frozenset({1, 3, 4})
# They say which colours the components are.
_COLOUR_SEGMENTS = {0xE0: b"JFIF\x00", 0xEE: b"Adobe"}
_EXIF = b"Exif\x00\x00"
_XMP = b"http://ns.adobe.com/xap/1.0/\x00"
_MARKER_BYTES = re.compile(rb"\xff[^\x00\xff]")  # one fill byte or several may come before
# The end of a scan's data: 0xff that begins neither a stuffed byte, a restart nor a fill.
_NEXT = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_LAST_RESTART = re.compile(rb".*\xff[\xd0-\xd7]", re.DOTALL)
_END_MARKER = b"\xff\xd9"
_COEFFICIENTS = 64
# Patterns in place of missing data. No code of a few bits is at the same place in all of them.
_PADDING_BITS = (b"\x1d\x94\xb3\x07\xe2\x58", b"\xe2\x6b\x4c\xf8\x1d\xa7", b"\x55")
_PADDING_BYTES = 64


@dataclass
class _Header:
    """What comes before the first scan."""

    kept: list[tuple[int, int]]  # start and end of the segments that the decoder needs
    scan: int  # position of the first scan's marker; where the file ends if there is none
    removed: bool = False
    exif: memoryview | None = None
    xmp: memoryview | None = None
    components: bytes = b""  # the ids of the image's components
    is_progressive: bool = False


def read_jpeg(data: bytes | memoryview, limits: ImageLimits) -> ImageSource:
    """Returns a JPEG without its metadata.

    Args:
        data: the whole file; a broken one is left to the decoder to refuse.
        limits: of which the number of scans applies.

    Raises:
        InvalidImage: for too many scans or segments, and if scans are missing.
        UnsupportedImage: for a JPEG of a kind that cannot be decoded, such as 12 bits.
    """
    num_scans = _check_scan_count(data, limits.max_jpeg_scans)
    whole = data if isinstance(data, bytes) else bytes(data)
    header = _read_header(whole)
    view = memoryview(whole)
    stripped: bytes | memoryview = view
    if header.removed:
        parts = (view[start:end] for start, end in header.kept)
        stripped = b"".join((view[:2], *parts, view[header.scan :]))
    endings: tuple[bytes, ...] = ()
    if header.scan < len(whole) and whole.rfind(_END_MARKER, header.scan) < 0:
        last_scan = _check_all_scans_are_there(whole, header, limits.max_jpeg_scans)
        stripped = bytes(stripped).rstrip(b"\xff")  # half of the missing marker
        endings = _endings(whole, last_scan)
    passes = num_scans if header.is_progressive else 1  # else each scan has its own components
    return ImageSource(
        stripped, orientation_of(header.exif, header.xmp), endings, passes=max(passes, 1)
    )


def without_end(source: ImageSource, limits: ImageLimits) -> ImageSource:
    """Returns a JPEG whose data may end early as one whose end is missing, so that it is checked.

    The last scan ends at its first marker. Restarts after that, of a file that is damaged in the
    middle, belong to it.

    Args:
        source: from `read_jpeg`, with an end marker.
        limits: of which the number of scans applies.

    Raises:
        InvalidImage: if scans are missing.
    """
    whole = bytes(source.data)
    header = _read_header(whole)
    last_scan = _check_all_scans_are_there(whole, header, limits.max_jpeg_scans)
    ends = [at for _, at in _markers(whole, last_scan)][1:] or [len(whole)]
    end = ends[-1] if _LAST_RESTART.match(whole, ends[0], ends[-1]) else ends[0]
    return replace(
        source, data=whole[:end].rstrip(b"\xff"), endings=_endings(whole[:end], last_scan)
    )


def _read_header(data: bytes) -> _Header:
    header = _Header([], len(data))
    position = 2
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER_BYTES.search(data, position)
        if found is None or found.end() + 2 > len(data):
            return header
        start, marker = found.start(), data[found.end() - 1]
        # Bytes that belong to no segment are left out too.
        header.removed |= start != position
        position = found.end()
        if marker == _SCAN:
            header.scan = start
            return header
        if marker == _END:
            return header
        if marker not in _BARE:
            body = position + 2
            position = max(position + int.from_bytes(data[position:body], "big"), body)
            _read_segment(header, marker, memoryview(data)[body:position], (start, position))
    raise InvalidImage(f"the JPEG image has more than {_MAX_SEGMENTS} segments before its pixels")


def _read_segment(header: _Header, marker: int, body: memoryview, span: tuple[int, int]) -> None:
    """Notes what a segment says, and whether the decoder needs it."""
    if marker in _FRAMES or marker in _UNSUPPORTED_FRAMES:
        _read_frame(header, marker, body)
    head = bytes(body[: len(_XMP)])
    if marker == _EXIF_OR_XMP and head.startswith(_EXIF):
        header.exif = header.exif or body
    elif marker == _EXIF_OR_XMP and head == _XMP:
        header.xmp = header.xmp or body
    is_metadata = marker in _APPLICATION or marker == _COMMENT
    if is_metadata and not head.startswith(_COLOUR_SEGMENTS.get(marker, ())):
        header.removed = True
    else:
        header.kept.append(span)


def _read_frame(header: _Header, marker: int, body: memoryview) -> None:
    """Refuses frames that cannot be decoded, by what their header says."""
    if marker in _UNSUPPORTED_FRAMES:
        raise UnsupportedImage(
            f"{_UNSUPPORTED_FRAMES[marker]} are not supported; send a baseline or progressive one"
        )
    if len(body) < 6:  # noqa: PLR2004 - precision, height, width and number of components
        return
    if body[0] != _SUPPORTED_BITS:
        raise UnsupportedImage(
            f"JPEG images of {body[0]} bits per sample are not supported; send 8 bits"
        )
    if body[5] not in _SUPPORTED_COMPONENTS:
        raise UnsupportedImage(
            f"JPEG images of {body[5]} components are not supported; send 1, 3 or 4"
        )
    header.components = bytes(body[6::3][: body[5]])
    header.is_progressive = marker in _PROGRESSIVE


def _endings(data: bytes, last_scan: int) -> tuple[bytes, ...]:
    """Returns endings that agree in no bit, so that missing bits do not go unnoticed.

    Each has the restart markers that the decoder may expect next, in their order.
    """
    found = _LAST_RESTART.match(data, last_scan)
    first = 0 if found is None else data[found.end() - 1] + 1
    restarts = [bytes((_MARKER, 0xD0 + (first + number) % 8)) for number in range(8)]
    return tuple(
        b"".join(bits * _PADDING_BYTES + restart for restart in restarts) + _END_MARKER
        for bits in _PADDING_BITS
    )


def _check_all_scans_are_there(data: bytes, header: _Header, max_scans: int) -> int:
    """Refuses a JPEG whose scans leave out coefficients, or bits of them, of a component.

    Returns:
        The position of the last scan.
    """
    position = header.scan
    missing = {component: set(range(_COEFFICIENTS)) for component in header.components}
    for position in _scans(data, max_scans):
        body = data[position + 4 : position + 2 + int.from_bytes(data[position + 2 : position + 4])]
        if len(body) < 6 or len(body) < 4 + 2 * body[0]:  # noqa: PLR2004 - of one component
            break
        first, last, bit = body[1 + 2 * body[0] : 4 + 2 * body[0]]
        if bit & 0x0F == 0:  # the lowest bit of the coefficients
            for component in body[1 : 1 + 2 * body[0] : 2]:
                missing.get(component, set()).difference_update(range(first, last + 1))
    if any(missing.values()):
        raise InvalidImage(
            "the JPEG image cannot be decoded: it is truncated (scans and the end marker are "
            "missing)"
        )
    return position


def _check_scan_count(data: bytes | memoryview, max_scans: int) -> int:
    """Refuses too many scans; returns an upper bound of their number."""
    # The two bytes can also occur in segments and after the end of the image.
    num_scans = _count_scan_markers(data)
    if num_scans <= max_scans:
        return num_scans
    num_scans = sum(1 for _ in _scans(bytes(data), max_scans))
    if num_scans > max_scans:
        raise InvalidImage(
            f"the JPEG image has more than {max_scans} scans; a progressive one has about 10"
        )
    return num_scans


def _count_scan_markers(data: bytes | memoryview) -> int:
    """Counts the two bytes of a scan marker; `bytes.count` takes three times as long."""
    samples = np.frombuffer(data, dtype=np.uint8)
    count = 0
    for start in range(0, len(samples), _SEARCHED_BYTES):
        part = samples[start : start + _SEARCHED_BYTES + 1]  # one more: a pair may cross the end
        pairs = (part[:-1] == _MARKER) & (part[1:] == _SCAN)
        count += int(np.count_nonzero(pairs))
    return count


def _scans(data: bytes, max_scans: int) -> Iterator[int]:
    """Yields the positions of the image's scans, at most one more than `max_scans`."""
    found = 0
    for kind, start in _markers(data, 2):
        if found > max_scans or kind == _END:
            return
        if kind == _SCAN:
            found += 1
            yield start


def _markers(data: bytes, position: int) -> Iterator[tuple[int, int]]:
    """Yields kind and position of the markers after a position, up to the end marker."""
    while (marker := _NEXT.search(data, position)) is not None:
        kind, position = data[marker.end() - 1], marker.end()
        yield kind, marker.start()
        if kind == _END:
            return
        if kind not in _BARE and position + 2 <= len(data):
            position += int.from_bytes(data[position : position + 2], "big")
