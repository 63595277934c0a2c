"""The engine's own throughput, without a service around it: what saturation is measured against.

    python -m benchmarks.serving.offline_engine MODEL THREADS BATCH

Started by `benchmarks.serving.alone`. For each line on stdin, a number of seconds, it runs batches
of the benchmark's photos, decoded beforehand, for so long, and prints a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.serving.images import NO_LIMITS, make_photos
from model.geometry import padded_size
from model.images.decode import decode_image
from service.engine.torch_device import TorchDevice


def main(arguments: Sequence[str]) -> int:
    """Answers until stdin ends."""
    path, threads, batch_size = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    device = TorchDevice(str(path), "cpu", threads)
    config = device.model.config
    decoded = [decode_image(photo.data, config, NO_LIMITS) for photo in make_photos()]
    batch = decoded[:batch_size]
    height, width = batch[0].pixels.shape[:2]
    padded = padded_size(height, width, config.bucket_stride)
    pixels, sizes = [one.pixels for one in batch], [one.original_size for one in batch]
    device.run(pixels, padded, sizes)
    print("ready", flush=True)
    for line in sys.stdin:
        images, started, cpu = 0, time.monotonic(), time.process_time()
        while time.monotonic() - started < float(line):
            device.run(pixels, padded, sizes)
            images += len(batch)
        seconds = time.monotonic() - started
        found = {"throughput": images / seconds, "images": images}
        found["cpu_ms"] = (time.process_time() - cpu) * 1000 / images
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
