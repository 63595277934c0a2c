"""Files that ImageMagick writes: types, depths and compressions of each format."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.corpus.scene import HEIGHT, LOSSY, WIDTH, CorpusFile, alpha, colours, integers

_TYPES = (
    *("Bilevel", "Grayscale", "GrayscaleAlpha", "TrueColor", "TrueColorAlpha"),
    *("ColorSeparation", "ColorSeparationAlpha"),
)
_PALETTE_TYPES = ("Palette", "PaletteAlpha")  # each costs a tenth of a second
_TIFF = (
    "",
    *(
        f"-compress {name}"
        for name in ("None", "LZW", "Zip", "RLE", "LZMA", "ZSTD", "WebP", "JPEG")
    ),
    *("-endian MSB", "-interlace Plane", "-define tiff:tile-geometry=16x16"),
    *("-define tiff:rows-per-strip=3", "-define tiff:fill-order=lsb"),
    "-define tiff:alpha=associated",
    *("-compress Group4", "-compress Fax", "-depth 4", "-depth 12", "-depth 16", "-depth 32"),
    *("-depth 16 -interlace Plane", "-depth 16 -endian MSB -compress Zip"),
    "-depth 32 -define quantum:format=floating-point",
    "-depth 16 -define quantum:format=floating-point",
    "-depth 64 -define quantum:format=floating-point",
)
_OPTIONS: dict[str, Sequence[str]] = {
    "tiff": _TIFF,
    "tiff64": ("", "-compress Zip"),
    "png": ("", "-depth 16", "-interlace Line", "-depth 2", "-define png:bit-depth=4"),
    "png8": ("",),
    "png24": ("",),
    "png32": ("",),
    "png48": ("",),
    "png64": ("",),
    "jpeg": (
        *("-quality 95", "-quality 95 -interlace Plane", "-quality 95 -sampling-factor 4:2:0"),
        *("-quality 95 -sampling-factor 4:1:1", "-quality 95 -define jpeg:arithmetic-coding=on"),
    ),
    "bmp": ("", "-compress RLE", "-compress None", "-define bmp:subtype=RGB565"),
    "bmp2": ("",),
    "bmp3": ("", "-compress None"),
    "gif": ("", "-interlace Line"),
    "gif87": ("",),
    "webp": ("-define webp:lossless=true", "-quality 95"),
}


# Which ImageMagick 6 does not read as it wrote them: alpha counts twice, or 12 bits are shifted.
_MISREAD = frozenset(
    {
        "tiff, TrueColorAlpha -compress JPEG",
        "tiff, GrayscaleAlpha -depth 12",
    }
)
# Threads cost more than such small images.
_ENVIRONMENT = os.environ | {"MAGICK_THREAD_LIMIT": "1", "OMP_NUM_THREADS": "1"}


def imagemagick() -> str | None:
    """The path of ImageMagick's program, by its own name; others are called `convert` too."""
    names = ("magick", "convert-im7.q16", "convert-im6.q16")
    return next(filter(None, map(shutil.which, names)), None)


def imagemagick_files(folder: Path) -> Iterator[CorpusFile]:
    """Every type with every option of each format, and what ImageMagick reads from it.

    Args:
        folder: for the files of the program.
    """
    program = imagemagick()
    assert program is not None
    source = folder / "source.png"
    samples = np.dstack([integers(colours(), 8), integers(alpha(), 8)])
    Image.fromarray(samples).save(source)
    written = []
    for form, options in _OPTIONS.items():
        for option in options:
            group = _write(program, source, form, option)
            _read(program, [target for _, target in group])
            for _, target in group:
                if not _rgb(target).exists():  # one that cannot be read ends the program
                    _read(program, [target])
            written += group
    for name, target in written:
        if name in _MISREAD or not _rgb(target).exists():
            continue
        expected = np.fromfile(_rgb(target), np.uint8).reshape(HEIGHT, WIDTH, 3)
        is_lossy = "JPEG" in name or name.startswith(("jpeg", "webp"))
        tolerance = LOSSY if is_lossy else 2
        yield CorpusFile(f"ImageMagick, {name}", target.read_bytes(), expected, tolerance)


def _write(program: str, source: Path, form: str, option: str) -> list[tuple[str, Path]]:
    """Writes a file of each type; returns names and paths of those that there are then."""
    writes, targets = [], []
    for kind in _TYPES if option else _TYPES + _PALETTE_TYPES:
        target = source.with_name(f"{form} {kind} {option}".replace(":", "_").replace(" ", "_"))
        flat = ("-background", "white", "-alpha", "remove", "-alpha", "off")
        writes += ["(", "+clone", *(() if "Alpha" in kind else flat), "-type", kind]
        writes += ["-write", f"{form}:{target}", "+delete", ")"]
        targets.append((f"{form}, {kind} {option}".strip(), target))
    _run([program, str(source), *option.split(), *writes, "null:"])
    return [(name, target) for name, target in targets if target.exists()]


def _rgb(target: Path) -> Path:
    return Path(f"{target}.rgb")


def _read(program: str, targets: Sequence[Path]) -> None:
    """Reads each file and writes its RGB, on white, to a file of the same name and ".rgb"."""
    reads = []
    for target in targets:
        flat = ["-colorspace", "sRGB", "-background", "white", "-alpha", "remove", "-depth", "8"]
        reads += ["(", f"{target}[0]", *flat, "-write", f"rgb:{_rgb(target)}", "+delete", ")"]
    _run([program, *reads, "null:"])


def _run(command: Sequence[str]) -> None:
    subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, env=_ENVIRONMENT
    )
