"""CPU time to decode and resize a JPEG file: with Pillow, and as the service does it in both modes.

    python -m benchmarks.kernels.resize [--repeats 15] [--output FOLDER]

All sides decode the same files and alternate; CPU milliseconds per image, medians. Writes
resize.json and resize.md.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from benchmarks.report import RESULTS, conditions, table, write_report
from benchmarks.serving.images import decode, decode_with_pillow, make_images
from model.geometry import resized_size
from model.images.pixel_memory import store_images_in_one_block
from model.images.resize import available, resize_bilinear
from service.images.allocator import keep_freed_memory
from tests.support.fake_device import FAKE_MODEL

_LARGE = ((1920, 1440), (3264, 2448), (4000, 3000))  # width, height, pixels
_ROUND_SECONDS = 0.1


def _cpu_ms(work: Callable[[], object]) -> float:
    count, started = 0, time.process_time()
    while (passed := time.process_time() - started) < _ROUND_SECONDS:
        work()
        count += 1
    return passed * 1000 / count


def _alternating(sides: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    rounds = [[_cpu_ms(side) for side in sides] for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def measure(data: bytes, repeats: int) -> list[dict[str, Any]]:
    """The rows of one JPEG file: resizing, and decoding with resizing, exact and scaled."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    config = FAKE_MODEL.config
    size = resized_size(image.height, image.width, config.shortest_side, config.longest_side)
    pillow, ours = _alternating(
        (
            lambda: np.array(image.resize(size[::-1], Image.Resampling.BILINEAR)),
            lambda: resize_bilinear(image, *size),
        ),
        repeats,
    )
    whole_pillow, whole_ours, scaled = _alternating(
        (
            lambda: np.array(decode_with_pillow(data)),
            lambda: decode(data),
            lambda: decode(data, "scaled"),
        ),
        repeats,
    )
    shown = f"{image.width} x {image.height} to {size[1]} x {size[0]}"
    rows = (
        ("resize", pillow, ours),
        ("decode and resize", whole_pillow, whole_ours),
        ("decode and resize, scaled", whole_pillow, scaled),
    )
    return [
        {"image": shown, "work": work, "pillow_ms": one, "ours_ms": other, "ratio": one / other}
        for work, one, other in rows
    ]


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description="Time decoding and resizing on the CPU.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS / "kernels")
    options = parser.parse_args()
    assert available(), "the resize kernel cannot be compiled here"
    document = conditions()
    keep_freed_memory()
    store_images_in_one_block()
    small = make_images()[0].data
    rows = measure(small, options.repeats)
    for size in _LARGE:
        large = io.BytesIO()
        Image.open(io.BytesIO(small)).resize(size).save(large, "JPEG", quality=90)
        rows += measure(large.getvalue(), options.repeats)
    document |= {"pillow": PIL.__version__, "repeats": options.repeats, "rows": rows}
    cells = [
        (
            row["image"],
            row["work"],
            *(f"{row[key]:.2f}" for key in ("pillow_ms", "ours_ms", "ratio")),
        )
        for row in rows
    ]
    sections = [
        f"Pillow {PIL.__version__}; CPU time per image, medians of {options.repeats}.\n",
        table(("image", "work", "Pillow, ms", "the service, ms", "ratio"), cells, texts=2),
    ]
    write_report(options.output / "resize", "Resizing on a CPU", document, sections)


if __name__ == "__main__":
    main()
