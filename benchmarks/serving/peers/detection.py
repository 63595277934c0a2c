"""Detection in every peer: the service's own decoding, and the same fake device.

There is one device, independent of the number of processes that a peer starts: it runs one batch
at a time, like one GPU that processes share. A file lock excludes other processes.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import orjson

from benchmarks.serving.images import as_json, decode
from model.images.decode import DecodedImage
from service.images.allocator import keep_freed_memory
from tests.support.fake_device import FAKE_MODEL, FakeDevice, FakeDeviceSpec

MAX_BATCH_SIZE = 8
MAX_WAIT_MS = 2.0
PADDED = (FAKE_MODEL.config.shortest_side, FAKE_MODEL.config.longest_side)
HOST = "127.0.0.1"
PORT = int(os.environ.get("PEER_PORT", "0"))
CPUS = len(os.sched_getaffinity(0))

if os.environ.get("PEER_KEEPS_MEMORY"):
    keep_freed_memory()  # as the service does
_device = FakeDevice(
    FakeDeviceSpec(
        base_ms=float(os.environ.get("PEER_BASE_MS", "1")),
        per_image_ms=float(os.environ.get("PEER_PER_IMAGE_MS", "1")),
    )
)
_thread_lock = threading.Lock()
_lock_file = Path(os.environ.get("PEER_DEVICE", os.devnull)).open("r+b")  # noqa: SIM115 - until the process ends
_decoders = ThreadPoolExecutor(CPUS, thread_name_prefix="decode")


@contextmanager
def _exclusive_device() -> Iterator[None]:
    """Waits until no other thread or process of this peer uses the device."""
    with _thread_lock:
        fcntl.lockf(_lock_file, fcntl.LOCK_EX)  # unlike flock, not shared with forked processes
        try:
            yield
        finally:
            fcntl.lockf(_lock_file, fcntl.LOCK_UN)


def run_device(images: Sequence[DecodedImage]) -> list[bytes]:
    """Runs decoded images as one batch; returns a JSON response body for each."""
    pixels = [image.pixels for image in images]
    sizes = [image.original_size for image in images]
    with _exclusive_device():
        result = _device.run(pixels, PADDED, sizes)
    return [orjson.dumps({"detections": as_json(found)}) for found in result.detections]


def detect(files: Sequence[bytes]) -> list[bytes]:
    """Decodes sequentially and runs one batch: for peers with several workers."""
    return run_device([decode(data) for data in files])


def detect_in_threads(files: Sequence[bytes]) -> list[bytes]:
    """Decodes in threads and runs one batch: for peers with one worker."""
    return run_device(list(_decoders.map(decode, files)))
