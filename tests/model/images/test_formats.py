"""The format of a file, by its first bytes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.images.formats import identify_format
from service.errors import InvalidImage, UnsupportedImage


@pytest.mark.parametrize(
    ("data", "format_name"),
    [
        (b"\xff\xd8\xff\xe1rest", "JPEG"),
        (b"\x89PNG\r\n\x1a\nrest", "PNG"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "WEBP"),
        (b"GIF87arest", "GIF"),
        (b"GIF89arest", "GIF"),
        (b"II*\x00rest", "TIFF"),
        (b"MM\x00*rest", "TIFF"),
        (b"BM" + bytes(12) + b"\x28\x00\x00\x00" + bytes(8), "BMP"),
    ],
)
def test_an_accepted_format_is_known_by_its_first_bytes(data: bytes, format_name: str) -> None:
    assert identify_format(data, len(data)) == format_name


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "SVG"),
        (b"<?xml version='1.0'?>\n<!-- a --><svg></svg>", "SVG"),
        (b"<?xml version='1.0'?><note/>", "XML"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "PDF"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "HEIC"),
        (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00", "HEIF"),
        (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00", "AVIF"),
        (b"\x00\x00\x00\x1cftypisom\x00\x00\x00\x00", "MP4"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "WAV"),
        (b"PK\x03\x04\x14\x00", "ZIP"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b'{"image": "abc"}', "JSON"),
        (b"data:image/png;base64,iVBORw0KGgo=", "data: URL"),
        (b"https://example.org/a.jpg", "web address"),
        (b"BMW is a maker of cars and not of images", "text"),
        ("Grüße aus Köln, ohne Bild".encode(), "text"),
        (("x" + "ä" * 4096).encode(), "text"),
    ],
)
def test_a_foreign_file_is_unsupported_and_named(data: bytes, named: str) -> None:
    with pytest.raises(UnsupportedImage, match=named):
        identify_format(data, len(data))


def test_bytes_of_no_known_kind_are_invalid() -> None:
    with pytest.raises(InvalidImage, match="not an image"):
        identify_format(bytes(range(128, 256)), 128)


@given(st.binary(max_size=64))
def test_any_bytes_are_recognised_or_refused(head: bytes) -> None:
    with contextlib.suppress(InvalidImage, UnsupportedImage):
        assert identify_format(head, len(head)) in {"JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"}
