"""How image files are built: scans are counted wherever they lie, and reads are metered."""

from __future__ import annotations

import pytest

from model.images import structure
from model.images.structure import check_structure, open_in_memory
from service.errors import InvalidImage

PIECE = 1 << 16
SCAN = b"\xff\xda\x00\x02"  # the mark and an empty segment


def jpeg_with_scans(count: int, distance: int, first: int) -> bytes:
    """Bytes built as a JPEG is, with a scan every so many bytes."""
    data = bytearray(b"\xff\xd8" + bytes(first + count * distance))
    for number in range(count):
        at = first + number * distance
        data[at : at + len(SCAN)] = SCAN
    return bytes(data)


@pytest.mark.parametrize("kind", [bytes, memoryview])
@pytest.mark.parametrize("first", [2, PIECE - 2, PIECE - 1, PIECE])
def test_scans_are_counted_wherever_they_lie(first: int, kind: type) -> None:
    """Also where a mark's two bytes lie in two of the pieces that are looked at."""
    data = kind(jpeg_with_scans(5, PIECE, first))
    check_structure("JPEG", data, max_jpeg_scans=5)
    with pytest.raises(InvalidImage, match="more than 4 scans"):
        check_structure("JPEG", data, max_jpeg_scans=4)


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xda", b"\xff\xd8"])
def test_a_file_that_is_hardly_one_has_no_scans(data: bytes) -> None:
    check_structure("JPEG", data, max_jpeg_scans=0)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF"])
def test_a_file_is_read_in_so_many_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "_MAX_READS", 100)
    file = open_in_memory(name, bytes(101))
    for _ in range(100):
        assert file.read(1) == b"\0"
    with pytest.raises(InvalidImage, match="too many pieces"):
        file.read(1)


def test_a_jpeg_with_fewer_bytes_than_steps_needs_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "_MAX_READS", 100)
    assert open_in_memory("JPEG", bytes(100)).read() == bytes(100)
    assert type(open_in_memory("JPEG", bytes(100))) is not structure.MeteredFile
    assert type(open_in_memory("PNG", bytes(100))) is structure.MeteredFile
