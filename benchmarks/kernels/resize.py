"""What decoding and resizing a photo costs, with Pillow alone and as the service does it.

    python -m benchmarks.kernels.resize [--repeats 15] [--output FOLDER]

Both sides decode the same JPEG files and take turns; CPU milliseconds of one image, medians. Writes
resize.json and resize.md.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from benchmarks.serving.images import decode, decode_with_pillow, make_photos
from model.geometry import resized_size
from model.images.pixel_memory import store_images_in_one_block
from model.images.resize import available, resize_bilinear
from service.images.allocator import keep_freed_memory
from tests.support.fake_device import FAKE_MODEL

_ROOT = Path(__file__).resolve().parents[2]
_LARGE = ((1920, 1440), (3264, 2448), (4000, 3000))  # width, height, pixels
_ROUND_SECONDS = 0.1


def _cpu_ms(work: Callable[[], object]) -> float:
    count, started = 0, time.process_time()
    while (passed := time.process_time() - started) < _ROUND_SECONDS:
        work()
        count += 1
    return passed * 1000 / count


def _in_turns(sides: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    rounds = [[_cpu_ms(side) for side in sides] for _ in range(repeats)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def measure(data: bytes, repeats: int) -> list[dict[str, object]]:
    """The rows for one JPEG file: resizing alone, and decoding with it."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    config = FAKE_MODEL.config
    size = resized_size(picture.height, picture.width, config.shortest_side, config.longest_side)
    pillow, ours = _in_turns(
        (
            lambda: np.array(picture.resize(size[::-1], Image.Resampling.BILINEAR)),
            lambda: resize_bilinear(picture, *size),
        ),
        repeats,
    )
    whole_pillow, whole_ours = _in_turns(
        (lambda: np.array(decode_with_pillow(data)), lambda: decode(data)), repeats
    )
    shown = f"{picture.width} x {picture.height} to {size[1]} x {size[0]}"
    rows = (("resize", pillow, ours), ("decode and resize", whole_pillow, whole_ours))
    return [
        {"photo": shown, "work": work, "pillow_ms": one, "ours_ms": other, "ratio": one / other}
        for work, one, other in rows
    ]


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=_ROOT / "benchmarks/results/kernels")
    options = parser.parse_args()
    assert available(), "there is no compiled kernel to measure"
    keep_freed_memory()
    store_images_in_one_block()
    small = make_photos()[0].data
    rows = measure(small, options.repeats)
    for size in _LARGE:
        large = io.BytesIO()
        Image.open(io.BytesIO(small)).resize(size).save(large, "JPEG", quality=90)
        rows += measure(large.getvalue(), options.repeats)
    facts = {
        "command": "python -m benchmarks.kernels.resize",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "pillow": PIL.__version__,
        "load_average": os.getloadavg()[0],
        "repeats": options.repeats,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    document = json.dumps(facts | {"rows": rows}, indent=2) + "\n"
    (options.output / "resize.json").write_text(document)
    lines = [
        "# Resizing on a CPU\n",
        f"Made by `{facts['command']}` on {str(facts['date'])[:10]}: Pillow {PIL.__version__}, "
        f"load average {facts['load_average']:.1f}; CPU time of one image.\n",
        "| photo | work | Pillow, ms | the service, ms | ratio |",
        "| --- | --- | ---: | ---: | ---: |",
        *(
            f"| {row['photo']} | {row['work']} | {row['pillow_ms']:.2f} | {row['ours_ms']:.2f} "
            f"| {row['ratio']:.2f} |"
            for row in rows
        ),
    ]
    text = "\n".join(lines) + "\n"
    (options.output / "resize.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
