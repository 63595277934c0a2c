"""Fonts that have the letters of a text."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import ImageFont

from service.images import fonts
from service.images.fonts import drawable, font_path, load_font


@pytest.fixture(autouse=True)
def without_cached_results() -> Iterator[None]:
    cached = (fonts.drawable, fonts.font_path, fonts._default_ranges, fonts._system_fonts)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the system's fonts, with files that are none."""
    (tmp_path / "empty.ttf").write_bytes(b"")
    (tmp_path / "broken.ttf").write_bytes(b"\x00\x01\x00\x00\x00\xff")
    (tmp_path / "text.txt").write_text("no font")
    monkeypatch.setattr(fonts, "_font_folders", lambda: [tmp_path])
    return tmp_path


def font_of(characters: range, form: int) -> bytes:
    """The tables of a font that has some characters, without outlines."""
    if form == 12:
        table = struct.pack(">HHIIIIII", 12, 0, 28, 0, 1, characters[0], characters[-1], 1)
    else:
        ends, starts = (characters[-1], 0xFFFF), (characters[0], 0xFFFF)
        table = struct.pack(">HHHHHHH", 4, 32, 0, 4, 0, 0, 0)
        table += struct.pack(">2HH2H2H2H", *ends, 0, *starts, 0, 0, 0, 0)
    cmap = struct.pack(">HHHHI", 0, 1, 3, 10 if form == 12 else 1, 12) + table
    tables = struct.pack(">IHHHH", 0x00010000, 2, 0, 0, 0)
    tables += struct.pack(">4s3I", b"cmap", 0, 44, len(cmap)) + struct.pack(
        ">4s3I", b"glyf", 0, 0, 0
    )
    return tables + cmap


def test_english_needs_no_font_of_the_system(folder: Path) -> None:
    assert font_path("traffic light 0.98") is None
    assert drawable("traffic light") == ("traffic light", None)


@pytest.mark.parametrize(
    ("form", "characters", "text"),
    [(4, range(0x4E00, 0xA000), "猫"), (12, range(0x1F000, 0x20000), "👍")],
)
def test_the_font_that_has_the_letters_is_found(
    folder: Path, form: int, characters: range, text: str
) -> None:
    (folder / "a-other.ttf").write_bytes(font_of(range(0x400, 0x500), 4))
    (folder / "b-inner").mkdir()
    (folder / "b-inner" / "wanted.otf").write_bytes(font_of(characters, form))
    assert font_path(text) == folder / "b-inner" / "wanted.otf"
    assert drawable(f" {text}\n") == (text, folder / "b-inner" / "wanted.otf")


def test_plain_fonts_are_preferred(folder: Path) -> None:
    for name in ("A-BoldItalic.ttf", "B-Mono.ttf", "ZSans.ttf", "Z.ttf"):
        (folder / name).write_bytes(font_of(range(0x400, 0x500), 4))
    assert font_path("кот") == folder / "ZSans.ttf"


def test_a_bitmap_font_is_left_out(folder: Path) -> None:
    (folder / "emoji.ttf").write_bytes(font_of(range(0x400, 0x500), 4).replace(b"glyf", b"CBDT"))
    with pytest.raises(LookupError, match="no font"):
        font_path("кот")


def test_a_collection_is_read(folder: Path) -> None:
    font = font_of(range(0x400, 0x500), 4)
    # Offsets of tables count from the start of the file.
    shifted = font[:20] + struct.pack(">I", 60) + font[24:]
    (folder / "many.ttc").write_bytes(b"ttcf" + struct.pack(">3I", 0x00010000, 1, 16) + shifted)
    assert font_path("кот") == folder / "many.ttc"


@pytest.mark.parametrize(
    ("name", "drawn"),
    [("Grüße", "Grusse"), ("Łódź", "Lodz"), ("Ærø", "Aero"), ("çé ñ", "ce n")],
)
def test_latin_letters_lose_their_accents_without_a_font(
    folder: Path, name: str, drawn: str
) -> None:
    assert drawable(name) == (drawn, None)


def test_a_font_file_is_loaded(tmp_path: Path) -> None:
    own = ImageFont.load_default(20)
    assert isinstance(own, ImageFont.FreeTypeFont)
    (tmp_path / "own.ttf").write_bytes(own.font_bytes)
    assert fonts._ranges_of(tmp_path / "own.ttf") == fonts._default_ranges()
    loaded = load_font(tmp_path / "own.ttf", 20)
    assert loaded.getlength("person") == pytest.approx(own.getlength("person"), rel=0.05)
