"""Fonts for labels on images: Pillow's own, or a font of the system that has the letters.

Pillow's font has the letters of English. Other names are drawn in an installed font, found by its
table of characters; without one, Latin letters lose their accents.
"""

from __future__ import annotations

import os
import struct
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from mmap import ACCESS_READ, mmap
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Ranges = tuple[tuple[int, int], ...]  # first and last character, both inclusive

_SUFFIXES = frozenset({".ttf", ".otf", ".ttc", ".otc"})
_MAX_FILES = 5000
_LATIN: Ranges = ((0x20, 0x7E), (0xA0, 0xFF))
_OUTLINES = frozenset({b"glyf", b"CFF ", b"CFF2"})  # bitmap fonts have one size only
# Latin letters that Unicode does not decompose.
_WITHOUT_ACCENT = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "þ": "th", "Þ": "Th", "ø": "o"}
    | {
        "Ø": "O",
        "ł": "l",
        "Ł": "L",
        "đ": "d",
        "Đ": "D",
        "ð": "d",
        "Ð": "D",
        "ħ": "h",
        "\u0131": "i",
    }
)
# Words in the name of a font file that make it less suitable.
_ORNATE = ("italic", "oblique", "bold", "serif", "mono", "light", "thin", "black", "condensed")
# Encodings of Unicode in the table of characters: (platform, encoding), the widest first.
_UNICODE = ((3, 10), (0, 6), (0, 4), (3, 1), (0, 3), (0, 2), (0, 1), (0, 0))
_SEGMENTS, _GROUPS = 4, 12  # formats of such a table


@cache
def drawable(text: str) -> tuple[str, Path | None]:
    """Returns how a text can be drawn, in which font.

    Returns:
        The text on one line, or its letters without accents; and the path of a font, None for
        Pillow's own.

    Raises:
        LookupError: if no font has all its characters.
    """
    line = " ".join(text.split())
    line = "".join(character for character in line if character.isprintable())
    try:
        return line, font_path(line)
    except LookupError:
        plain = unicodedata.normalize("NFKD", line.translate(_WITHOUT_ACCENT))
        plain = "".join(one for one in plain if not unicodedata.combining(one))
        return plain, font_path(plain)


@cache
def font_path(text: str) -> Path | None:
    """Returns the system's font that has all characters of a text which Pillow's font lacks.

    Returns:
        None for Pillow's own font.

    Raises:
        LookupError: if no font has them.
    """
    characters = {ord(character) for character in text if not character.isspace()}
    if _has(_default_ranges(), characters):
        return None
    for path in _system_fonts():
        if _has(_ranges_of(path), characters):
            return path
    raise LookupError(f"no font has all characters of {text!r}")


def load_font(path: Path | None, size: int) -> Font:
    """Loads a font that `font_path` returned.

    Args:
        path: None for Pillow's own.
        size: in pixels.
    """
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)


def _has(ranges: Ranges, characters: set[int]) -> bool:
    return all(any(first <= one <= last for first, last in ranges) for one in characters)


@cache
def _default_ranges() -> Ranges:
    font = ImageFont.load_default(10)
    data = getattr(font, "font_bytes", None)
    return _LATIN if data is None else _character_ranges(data) or _LATIN


@cache
def _system_fonts() -> tuple[Path, ...]:
    """Returns the installed font files, plain ones first."""
    found: list[Path] = []
    for folder in _font_folders():
        for path in folder.rglob("*"):
            if path.suffix.lower() in _SUFFIXES:
                found.append(path)
            if len(found) >= _MAX_FILES:
                break
    return tuple(sorted(found, key=_plainness))


def _plainness(path: Path) -> tuple[int, int, str]:
    name = path.stem.lower()
    return sum(word in name for word in _ORNATE), "sans" not in name, str(path)


def _font_folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "darwin":
        folders = [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    elif sys.platform == "win32":
        folders = [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"]
    else:
        data = os.environ.get("XDG_DATA_DIRS", "/usr/local/share:/usr/share").split(":")
        folders = [home / ".fonts", home / ".local/share/fonts"]
        folders += [Path(folder) / "fonts" for folder in data if folder]
    return [folder for folder in folders if folder.is_dir()]


@cache
def _ranges_of(path: Path) -> Ranges:
    """Returns the characters of a font file; none if it is not a usable font."""
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            return _character_ranges(data)
    except (OSError, ValueError):  # ValueError: an empty file
        return ()


def _character_ranges(data: bytes | mmap) -> Ranges:
    """Reads the characters of an OpenType font, of the first one in a collection.

    The tables `cmap` of https://learn.microsoft.com/typography/opentype/spec/cmap.
    """
    try:
        start = struct.unpack_from(">I", data, 12)[0] if data[:4] == b"ttcf" else 0
        (num_tables,) = struct.unpack_from(">H", data, start + 4)
        tables = {}
        for number in range(num_tables):
            tag, _, offset, _ = struct.unpack_from(">4s3I", data, start + 12 + 16 * number)
            tables[tag] = offset
        if b"cmap" not in tables or not _OUTLINES & tables.keys():
            return ()
        return tuple(_table_ranges(data, tables[b"cmap"]))
    except struct.error:
        return ()


def _table_ranges(data: bytes | mmap, table: int) -> Iterator[tuple[int, int]]:
    (num_encodings,) = struct.unpack_from(">H", data, table + 2)
    encodings = {}
    for number in range(num_encodings):
        platform, encoding, offset = struct.unpack_from(">HHI", data, table + 4 + 8 * number)
        encodings[platform, encoding] = table + offset
    at = next((encodings[key] for key in _UNICODE if key in encodings), None)
    if at is None:
        return
    (form,) = struct.unpack_from(">H", data, at)
    if form == _GROUPS:
        (count,) = struct.unpack_from(">I", data, at + 12)
        for number in range(count):
            first, last, _ = struct.unpack_from(">3I", data, at + 16 + 12 * number)
            yield first, last
    elif form == _SEGMENTS:
        (doubled,) = struct.unpack_from(">H", data, at + 6)
        lasts = struct.unpack_from(f">{doubled // 2}H", data, at + 14)
        firsts = struct.unpack_from(f">{doubled // 2}H", data, at + 16 + doubled)
        # The last segment marks the end.
        yield from zip(firsts[:-1], lasts[:-1], strict=True)
