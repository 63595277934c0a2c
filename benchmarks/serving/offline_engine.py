"""Throughput of the engine without the service: the upper bound of the service's throughput.

    python -m benchmarks.serving.offline_engine MODEL THREADS BATCH

Started by `benchmarks.serving.alone`. Each line on stdin is a number of seconds; for this time it
runs batches of decoded images, and then prints a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.serving.images import NO_LIMITS, make_images
from model.geometry import padded_size
from model.images.decode import decode_image
from service.engine.torch_device import TorchDevice


def main(arguments: Sequence[str]) -> int:
    """Measures once per line until stdin ends."""
    path, threads, batch_size = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    device = TorchDevice(str(path), "cpu", threads)
    config = device.model.config
    decoded = [decode_image(image.data, config, NO_LIMITS) for image in make_images()]
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
