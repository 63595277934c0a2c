"""CPU time to decode JPEG, PNG and WebP files with the service and with other libraries.

    python -m benchmarks.kernels.decoders [--repeats 15] [--output FOLDER]
        [--sides service Pillow OpenCV imagecodecs spng torchvision]

Every side decodes the same files at full size to 8-bit RGB, on one thread and in a process of its
own; all take turns. The libraries that the service does not use have an environment each below
`--environments`, which is made when it is missing. A library that cannot be installed or imported
is left out, and the report says why. torchvision is measured only if it is named: it installs
PyTorch again, and its packages need PyTorch's build for CUDA. Writes decoders.json and decoders.md.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.kernels.decoder_worker import LIBRARIES
from benchmarks.model.turns import Side, environment_of
from benchmarks.report import RESULTS, conditions, table, version_of, write_report
from benchmarks.serving.images import SAMPLES

# Distributions of the sides that have an environment of their own.
PACKAGES = {
    "OpenCV": ("opencv-python-headless==5.0.0.93",),
    "imagecodecs": ("imagecodecs==2026.3.6",),
    "spng": ("pyspng==0.1.4",),
    "torchvision": ("torchvision==0.28.0", "torch==2.13.0"),
}
SIDES = ("service", "Pillow", "OpenCV", "imagecodecs", "spng")
SIZES = ((640, 480), (1920, 1440), (4000, 3000))  # width, height
ENCODINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG": ("jpg", {"quality": 90}),
    "JPEG, progressive": ("jpg", {"quality": 90, "progressive": True}),
    "PNG": ("png", {}),
    "WebP": ("webp", {"quality": 85}),
    "WebP, lossless": ("webp", {"lossless": True, "quality": 30}),
}
_GRAIN = 2.0  # standard deviation of the noise of a camera, levels of 255
_MEAN_TOLERANCE = 1.0  # between decoders, levels of 255


@dataclass(frozen=True)
class Row:
    """The figures of one file."""

    format: str
    width: int
    height: int
    megabytes: float
    cpu_ms: dict[str, float]  # median of each side


def make_files(folder: Path, sizes: Sequence[tuple[int, int]]) -> list[tuple[str, Path]]:
    """Writes a sample photo with grain in every format and size; returns formats and files."""
    with Image.open(SAMPLES / "shelf.jpg") as opened:
        photo = opened.convert("RGB")
    rng = np.random.default_rng(0)
    files = []
    for size in sizes:
        pixels = np.asarray(photo.resize(size, Image.Resampling.LANCZOS), np.float32)
        pixels += rng.normal(0.0, _GRAIN, pixels.shape).astype(np.float32)
        image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
        for number, (name, (suffix, options)) in enumerate(ENCODINGS.items()):
            files.append((name, folder / f"{number}-{size[0]}.{suffix}"))
            image.save(files[-1][1], **options)
    return files


def interpreters(names: Sequence[str], folder: Path) -> tuple[dict[str, str], list[str]]:
    """The interpreter of each side, and why others are left out."""
    found, left_out = {}, []
    for name in names:
        try:
            packages = PACKAGES.get(name)
            found[name] = sys.executable
            if packages is not None:
                found[name] = environment_of(folder / name, *packages)
        except subprocess.CalledProcessError:
            del found[name]
            left_out.append(f"{name} is left out: it cannot be installed here.")
    return found, left_out


def measure(
    name: str, file: Path, pythons: dict[str, str], repeats: int
) -> tuple[Row, dict[str, str]]:
    """Times all sides in turns on one file.

    Returns:
        The figures, and the reason by side for those that failed to start.

    Raises:
        RuntimeError: if a side decodes another image than the first one.
    """
    sides, failed = [], {}
    for side, python in pythons.items():
        command = [python, "-m", "benchmarks.kernels.decoder_worker", side, str(file)]
        try:
            started = Side(side, command)
        except RuntimeError as error:
            failed[side] = f"{side} is left out: {error}."
            continue
        if started.ready["decodes"]:
            sides.append(started)
        else:
            started.close()
    for _ in range(repeats):
        for each in sides:
            each.run()
    for each in sides:
        each.close()
        first = sides[0].ready
        same = each.ready["samples"] == first["samples"]
        if not same or abs(each.ready["mean"] - first["mean"]) > _MEAN_TOLERANCE:
            raise RuntimeError(f"{each.name} and {sides[0].name} decode {name} differently")
    cpu = {s.name: round(statistics.median(c for _, c in s.times) * 1000, 2) for s in sides}
    data = file.read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        return Row(name, *image.size, round(len(data) / 1e6, 2), cpu), failed


def to_markdown(rows: Sequence[Row], sides: Sequence[str]) -> str:
    """The report's table."""
    columns = ("format", "size", "MB", *(f"{side}, ms" for side in sides))
    cells = [
        (
            *(row.format, f"{row.width} x {row.height}", f"{row.megabytes}"),
            *(f"{row.cpu_ms[side]:.2f}" if side in row.cpu_ms else "" for side in sides),
        )
        for row in rows
    ]
    return table(columns, cells, texts=2)


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description="Time decoders of JPEG, PNG and WebP.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=tuple(LIBRARIES))
    parser.add_argument("--widths", nargs="+", type=int, default=[width for width, _ in SIZES])
    parser.add_argument(
        "--environments", type=Path, default=Path.home() / ".cache/lite-detr/decoders"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "kernels")
    options = parser.parse_args()
    document = conditions()
    pythons, left_out = interpreters(options.sides, options.environments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sizes = [size for size in SIZES if size[0] in options.widths]
        for name, file in make_files(Path(folder), sizes):
            row, failed = measure(name, file, pythons, options.repeats)
            rows.append(row)
            left_out += failed.values()
            pythons = {side: python for side, python in pythons.items() if side not in failed}
    names = {"Pillow": "pillow", "service": "simplejpeg"}
    names |= {side: packages[0].partition("==")[0] for side, packages in PACKAGES.items()}
    versions = {names[side]: version_of(names[side], python) for side, python in pythons.items()}
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    document |= {"repeats": options.repeats, "versions": versions, "left_out": left_out}
    document |= {"rows": [asdict(row) for row in rows]}
    sections = [
        f"{shown}; CPU time per file, medians of {options.repeats} turns. The service also checks "
        "each file, and lays transparency on white.\n",
        *(f"{line}\n" for line in left_out),
        to_markdown(rows, list(pythons)),
    ]
    write_report(options.output / "decoders", "Decoders on a CPU", document, sections)


if __name__ == "__main__":
    main()
