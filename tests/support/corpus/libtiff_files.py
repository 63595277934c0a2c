"""TIFF files that tiffcp, libtiff's own tool, writes: compressions, tiles, fill orders, BigTIFF."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from tests.support.corpus.own_files import packed_tiff
from tests.support.corpus.pillow_files import pillow_images
from tests.support.corpus.scene import LOSSY, ROUNDED, UINT8, CorpusFile, grey, integers, shown
from tests.support.corpus.tifffile_files import samples_of_type, tifffile_bytes

_COMPRESSIONS = ("none", "packbits", "lzw", "lzw:2", "zip", "zip:2", "lzma", "lzma:2", "zstd:2")
_LAYOUTS = (
    (),
    ("-p", "separate"),
    ("-t", "-w", "16", "-l", "16"),
    ("-t", "-w", "48", "-l", "32", "-p", "separate"),
    ("-r", "4"),
    ("-f", "lsb2msb"),
    ("-8",),
    ("-B",),
    ("-B", "-8", "-t", "-w", "16", "-l", "16"),
)
_COLOURS = {
    "uint8": ("grey", "white is zero", "RGB", "RGBA", "RGBa", "grey and alpha", "CMYK"),
    "uint16": ("grey", "RGB", "RGBA"),
    "float32": ("grey", "RGB"),
}


def _sources() -> dict[str, tuple[bytes, UINT8]]:
    """Uncompressed files and what they show."""
    sources = {}
    for kind, colours in _COLOURS.items():
        samples = samples_of_type(kind)
        for colour in colours:
            data = tifffile_bytes(samples[colour][0], colour)
            sources[f"{kind} {colour}"] = (data, samples[colour][1])
    for mode in ("1", "P"):
        image, expected, _ = pillow_images()[mode]
        sources[mode] = (_tiff(image), expected)
    for bits in (4, 12):
        black = integers(grey(), bits)
        sources[f"{bits} bits"] = (packed_tiff(black, bits, 1, "<", 1), shown(black, bits))
    return sources


def _tiff(image: Image.Image) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, "TIFF")
    return encoded.getvalue()


def _jobs(name: str) -> Iterator[tuple[str, ...]]:
    for compression in _COMPRESSIONS:
        yield ("-c", compression)
    for layout in _LAYOUTS:
        yield ("-c", "none", *layout)
        yield ("-c", "lzw", *layout)
    if name.startswith("float"):
        yield ("-c", "zip:3")
        yield ("-c", "lzw:3", "-p", "separate")
    if name == "1":
        for coding in ("g3:1d", "g3:2d", "g3:2d:fill", "g4"):
            yield ("-c", coding)
            yield ("-c", coding, "-f", "lsb2msb", "-r", "4")
            yield ("-c", coding, "-B")
    if name.startswith("uint8"):
        for coding in ("jpeg:95", "jpeg:r:95", "webp:95", "lerc"):
            for layout in _LAYOUTS:
                yield ("-c", coding, *layout)


def libtiff_files(folder: Path) -> Iterator[CorpusFile]:
    """Every source in every compression and layout that tiffcp can write.

    Args:
        folder: for the files of the tool.
    """
    source, target = folder / "source.tif", folder / "target.tif"
    for name, (data, expected) in _sources().items():
        source.write_bytes(data)
        for options in _jobs(name):
            target.unlink(missing_ok=True)
            done = subprocess.run(
                ["tiffcp", *options, str(source), str(target)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            if done.returncode or not target.exists():
                continue
            is_lossy = options[1].startswith(("jpeg", "webp"))
            # Halved colours are blurred where a tile goes on beyond the image.
            is_blurred = options[1] == "jpeg:95" and "-t" in options and name == "uint8 RGB"
            yield CorpusFile(
                f"TIFF, {name}, tiffcp {' '.join(options)}",
                target.read_bytes(),
                None if is_blurred else expected,
                LOSSY if is_lossy else ROUNDED,
            )
