"""The format of a file, by its first bytes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.images import formats
from model.images.formats import foreign_kind, identify_format, image_kind, supported_formats
from service.errors import InvalidImage, UnsupportedImage

FORMATS = {"JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF"}


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
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIF"),
        (b"\x00\x00\x00\x10ftypmsf1\x00\x00\x00\x00", "HEIF"),
        (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00mif1miafMA1B", "AVIF"),
        (b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00avifmiaf", "AVIF"),
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
        (b"\x00\x00\x00\x18ftypcrx \x00\x00\x00\x00", "Canon raw"),
        (b"\x00\x00\x00\x18ftypqt  \x00\x00\x00\x00\x00\x00\x00\x00", "MP4"),
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


def test_formats_without_a_decoder_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    always = ("JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF")
    for installed in ([], ["AVIF"], ["HEIF"], ["AVIF", "HEIF"]):
        monkeypatch.setattr(formats, "has_decoder", installed.__contains__)
        supported_formats.cache_clear()
        shown = tuple({"HEIF": "HEIC"}.get(name, name) for name in installed)
        assert supported_formats() == (*always, *shown)
        with pytest.raises(InvalidImage, match=f"accepted are {', '.join((*always, *shown))}$"):
            identify_format(bytes(range(128, 256)), 128)
    supported_formats.cache_clear()


def test_images_of_phones_are_named_where_something_else_is_expected() -> None:
    for brand, named in ((b"avif", "an AVIF image"), (b"heic", "a HEIF image")):
        head = b"\x00\x00\x00\x10ftyp" + brand + bytes(4)
        assert image_kind(head) == foreign_kind(head) == named


@given(st.binary(max_size=64))
def test_any_bytes_are_recognised_or_refused(head: bytes) -> None:
    with contextlib.suppress(InvalidImage, UnsupportedImage):
        assert identify_format(head, len(head)) in FORMATS
