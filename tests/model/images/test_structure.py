"""The structure of image files: scans are counted, and reads are limited."""

from __future__ import annotations

import pytest

from model.images import structure
from model.images.structure import check_structure, open_in_memory
from service.errors import InvalidImage

CHUNK = 1 << 16
SCAN = b"\xff\xda\x00\x02"  # the marker and an empty segment


def jpeg_with_scans(count: int, distance: int, first: int) -> bytes:
    """Bytes with the structure of a JPEG, with scans at a distance in bytes."""
    data = bytearray(b"\xff\xd8" + bytes(first + count * distance))
    for number in range(count):
        at = first + number * distance
        data[at : at + len(SCAN)] = SCAN
    return bytes(data)


@pytest.mark.parametrize("kind", [bytes, memoryview])
@pytest.mark.parametrize("first", [2, CHUNK - 2, CHUNK - 1, CHUNK])
def test_scans_are_counted_at_any_position(first: int, kind: type) -> None:
    """Also if a marker's two bytes are in two chunks."""
    data = kind(jpeg_with_scans(5, CHUNK, first))
    check_structure("JPEG", data, max_jpeg_scans=5)
    with pytest.raises(InvalidImage, match="more than 4 scans"):
        check_structure("JPEG", data, max_jpeg_scans=4)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xda", b"\xff\xd8"])
def test_a_few_bytes_have_no_scans(data: bytes) -> None:
    check_structure("JPEG", data, max_jpeg_scans=0)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF"])
def test_the_number_of_reads_is_limited(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "_MAX_READS", 100)
    file = open_in_memory(name, bytes(101))
    for _ in range(100):
        assert file.read(1) == b"\0"
    with pytest.raises(InvalidImage, match="too many pieces"):
        file.read(1)


def test_a_jpeg_of_fewer_bytes_than_reads_needs_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "_MAX_READS", 100)
    assert open_in_memory("JPEG", bytes(100)).read() == bytes(100)
    assert type(open_in_memory("JPEG", bytes(100))) is not structure.ReadLimitedFile
    assert type(open_in_memory("PNG", bytes(100))) is structure.ReadLimitedFile
