"""Recognises the format of a file by its first bytes, before a decoder reads it."""

from __future__ import annotations

from functools import cache

from model.images.errors import DetectionError, InvalidImage, UnsupportedImage
from model.images.heif_decoders import has_decoder

# Files in a folder with these names are images; their content decides what they are.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff"}
    | {".gif", ".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif"}
)
_ALWAYS_SUPPORTED = ("JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF")
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
)
_FOREIGN_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x01\x00", "a Windows icon"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 codestream"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (b"#?RADIANCE", "a Radiance HDR image"),
    (b"qoif", "a QOI image"),
    (b"DDS ", "a DirectDraw surface"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
)
# Brands of ISO media files: of AVIF, and of HEIC or images of any codec.
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
    | {b"mif1", b"mif2", b"msf1"}
)
_ISO_MEDIA_KINDS = {b"crx ": "a Canon raw photo"}
_BRANDS_START, _BRAND_BYTES, _MAX_BRANDS = 8, 4, 64
_RIFF_KINDS = {b"AVI ": "an AVI video", b"WAVE": "a WAV sound"}
_BMP_HEADER_BYTES = 26
_MIN_TEXT_BYTES = 8
_LONGEST_UTF8_BYTES = 4
_TEXT_KINDS = (
    (
        "version https://git-lfs.github.com/",
        "a Git LFS pointer instead of the file (run `git lfs pull`)",
    ),
    ("<!doctype html", "an HTML page"),
    ("<html", "an HTML page"),
    ("<?xml", "an XML document"),
    ("data:image/", "a data: URL (send the image's own bytes)"),
    ("http://", "a web address (send the image's own bytes)"),
    ("https://", "a web address (send the image's own bytes)"),
    ("{", "JSON (send the image's own bytes)"),
    ("[", "JSON (send the image's own bytes)"),
)


@cache
def supported_formats() -> tuple[str, ...]:
    """Returns the names of the formats that this installation decodes."""
    optional = (("AVIF", "AVIF"), ("HEIF", "HEIC"))
    return (*_ALWAYS_SUPPORTED, *(shown for name, shown in optional if has_decoder(name)))


def identify_format(head: bytes, num_bytes: int) -> str:
    """Returns the format of a file by its content.

    Args:
        head: its first bytes; some thousand are enough.
        num_bytes: length of the whole file.

    Returns:
        "JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF" or "HEIF" (Pillow's names; the codec
        of a HEIF file is not known yet).

    Raises:
        UnsupportedImage: for a file of another kind, which the message names.
        InvalidImage: for bytes of an unknown kind.
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    for magic, name in _MAGIC:
        if head.startswith(magic) and (name != "BMP" or _is_bmp(head)):
            return name
    if (name_by_brand := _heif_name(head)) is not None:
        return name_by_brand
    looks_like = foreign_kind(head)
    accepted = ", ".join(supported_formats())
    if looks_like is not None:
        raise UnsupportedImage(f"this looks like {looks_like}; accepted are {accepted}")
    raise InvalidImage(
        f"the {num_bytes} bytes are not an image of a known format; accepted are {accepted}"
    )


def image_kind(head: bytes) -> str | None:
    """Returns what an image in a supported format is, such as "a JPEG image"; None for others."""
    try:
        name = identify_format(head, len(head))
    except DetectionError:
        return None
    return f"{'an' if name == 'AVIF' else 'a'} {name} image"


def _heif_name(head: bytes) -> str | None:
    """Returns "AVIF" or "HEIF" for a file with a brand of images; None for others."""
    if head[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(head[:4]), len(head), _BRANDS_START + _BRAND_BYTES * _MAX_BRANDS)
    brands = [head[at : at + _BRAND_BYTES] for at in range(_BRANDS_START, end, _BRAND_BYTES)]
    # The second of these is the version of the first.
    major, others = brands[:1], brands[2:]
    for brand in (*major, *others):
        if brand in _AVIF_BRANDS:
            return "AVIF"
    return "HEIF" if _HEIF_BRANDS.intersection((*major, *others)) else None


def _is_bmp(head: bytes) -> bool:
    """Checks the size of the header too, as a text can begin with "BM"."""
    return len(head) >= _BMP_HEADER_BYTES and head[15:18] == b"\x00\x00\x00"


def foreign_kind(head: bytes) -> str | None:
    """Returns what a file that is not an image is, by its first bytes; None if unknown."""
    for magic, kind in _FOREIGN_MAGIC:
        if head.startswith(magic):
            return kind
    if head[4:8] == b"ftyp":
        name = _heif_name(head)
        if name is not None:
            return f"{'an' if name == 'AVIF' else 'a'} {name} image"
        return _ISO_MEDIA_KINDS.get(head[8:12], "an MP4 or QuickTime file")
    if head[:4] == b"RIFF":
        return _RIFF_KINDS.get(head[8:12], "a RIFF file that is not WebP")
    return _text_kind(head)


def _text_kind(head: bytes) -> str | None:
    """Returns the kind of text, or None if the bytes are not text."""
    text = _as_text(head)
    if text is None:
        return None
    start = text.lstrip().lower()
    if "<svg" in start:
        return "an SVG drawing"
    return next((kind for prefix, kind in _TEXT_KINDS if start.startswith(prefix)), "text")


def _as_text(head: bytes) -> str | None:
    if len(head) < _MIN_TEXT_BYTES:
        return None
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The end of `head` may be in the middle of a character.
        if error.start < len(head) - _LONGEST_UTF8_BYTES:
            return None
        text = head[: error.start].decode("utf-8-sig")
    printable = all(char >= " " or char in "\t\n\r\f" for char in text)
    return text if printable else None
