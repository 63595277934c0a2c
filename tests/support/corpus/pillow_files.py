"""Files that Pillow writes, in every mode, depth and compression of each format."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image

from model.images import heif_decoders
from tests.support.corpus.scene import (
    EXACT,
    LOSSY,
    ROUNDED,
    UINT8,
    CorpusFile,
    alpha,
    colours,
    grey,
    integers,
    shown,
)

TIFF_COMPRESSIONS = (
    None,
    *("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "lzma", "zstd"),
)


def pillow_images() -> dict[str, tuple[Image.Image, UINT8, int]]:
    """Images by mode, with what they show and the tolerance."""
    rgb, black = integers(colours(), 8), integers(grey(), 8)
    opaque = integers(alpha(), 8)
    seen = shown(rgb), shown(black)
    whole = opaque / 255
    translucent = shown(rgb, 8, whole)
    palette = Image.fromarray(rgb).quantize(61)
    from_palette = np.asarray(palette.convert("RGB"))
    # CMYK of the scene without black ink.
    inks = Image.fromarray(np.dstack([255 - rgb, np.zeros_like(black)]), "CMYK")
    bilevel = Image.fromarray(black > 128)
    deep = integers(grey(), 16)
    return {
        "1": (bilevel, np.asarray(bilevel.convert("RGB")), EXACT),
        "L": (Image.fromarray(black), seen[1], EXACT),
        "LA": (Image.fromarray(np.dstack([black, opaque]), "LA"), shown(black, 8, whole), ROUNDED),
        "P": (palette, from_palette, EXACT),
        "RGB": (Image.fromarray(rgb), seen[0], EXACT),
        "RGBA": (Image.fromarray(np.dstack([rgb, opaque])), translucent, ROUNDED),
        "CMYK": (inks, seen[0], ROUNDED),
        "YCbCr": (Image.fromarray(rgb).convert("YCbCr"), seen[0], 4),
        "I;16": (Image.fromarray(deep), shown(deep, 16), ROUNDED),
        "I": (Image.fromarray(deep.astype(np.int32)), shown(deep, 16), ROUNDED),
        "F": (Image.fromarray(grey().astype(np.float32)), shown(black), ROUNDED),
    }


def _encode(image: Image.Image, form: str, **options: object) -> bytes | None:
    encoded = io.BytesIO()
    try:
        image.save(encoded, form, **options)
    except (OSError, ValueError, KeyError, SystemError, RuntimeError, TypeError):
        return None  # this format has no such mode
    return encoded.getvalue()


def _options() -> Iterator[tuple[str, dict[str, object]]]:
    for compression, big in itertools.product(TIFF_COMPRESSIONS, (False, True)):
        yield "TIFF", {"compression": compression, "big_tiff": big}
    yield "TIFF", {"compression": "group3"}
    yield "TIFF", {"compression": "group4"}
    yield "TIFF", {"compression": "tiff_ccitt"}
    yield "TIFF", {"compression": "jpeg", "quality": 95}
    yield "TIFF", {"compression": "webp", "quality": 95}
    yield "TIFF", {"compression": "tiff_lzw", "tiffinfo": {317: 2}}
    yield "TIFF", {"compression": "tiff_adobe_deflate", "tiffinfo": {317: 2}}
    yield "TIFF", {"compression": "tiff_lzw", "tiffinfo": {278: 3}}
    for level, optimize in itertools.product((0, 1, 9), (False, True)):
        yield "PNG", {"compress_level": level, "optimize": optimize}
    for bits in (1, 2, 4):
        yield "PNG", {"bits": bits}
    for progressive, subsampling in itertools.product((False, True), (0, 1, 2)):
        yield "JPEG", {"quality": 95, "progressive": progressive, "subsampling": subsampling}
    yield "JPEG", {"quality": 95, "optimize": True, "restart_marker_blocks": 2}
    yield "JPEG", {"quality": 95, "keep_rgb": True}
    yield "WEBP", {"lossless": True}
    yield "WEBP", {"lossless": True, "exact": True}
    yield "WEBP", {"quality": 95}
    yield "WEBP", {"quality": 95, "alpha_quality": 100, "method": 6}
    yield "AVIF", {"quality": 100, "subsampling": "4:4:4"}
    yield "AVIF", {"quality": 95, "range": "limited"}
    yield "HEIF", {"quality": 95, "chroma": 444}
    yield "BMP", {}
    yield "GIF", {}
    yield "GIF", {"interlace": False}
    yield "GIF", {"optimize": True}


def pillow_files() -> Iterator[CorpusFile]:
    """Every mode with every option, where the format has it."""
    heif_decoders.register()
    images = pillow_images()
    for (mode, (image, expected, tolerance)), (form, options) in itertools.product(
        images.items(), _options()
    ):
        if form == "PNG" and "bits" in options and mode != "P":
            continue
        data = _encode(image, form, **options)
        if data is None:
            continue
        is_lossy = "quality" in options
        # Reduced to a palette; deep samples are clipped for WebP and AVIF.
        is_changed = (
            (form == "GIF" and mode not in {"1", "L", "P"})
            or "bits" in options
            or (form in {"WEBP", "AVIF"} and mode in {"I;16", "I", "F"})
        )
        # The fourth byte of this BMP is not declared to be alpha.
        seen = np.asarray(image.convert("RGB")) if (form, mode) == ("BMP", "RGBA") else expected
        yield CorpusFile(
            f"{form}, {mode}, {options}",
            data,
            None if is_changed else seen,
            LOSSY + 8 * (mode == "P") if is_lossy else tolerance,
        )
