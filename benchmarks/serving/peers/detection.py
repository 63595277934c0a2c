"""What every peer does with an image: the service's own decoding and the same fake device.

There is one device, whatever number of processes a peer starts: one batch at a time is on it, as
on the one GPU of a machine whose processes take turns. A file lock keeps the turns.
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
_one_thread = threading.Lock()
_turns = Path(os.environ.get("PEER_DEVICE", os.devnull)).open("r+b")  # noqa: SIM115 - as long as the process lives
decoders = ThreadPoolExecutor(CPUS, thread_name_prefix="decode")


@contextmanager
def _turn_on_the_device() -> Iterator[None]:
    """Waits until no other thread or process of this peer is on the device."""
    with _one_thread:
        fcntl.lockf(_turns, fcntl.LOCK_EX)  # unlike flock, not shared by forks
        try:
            yield
        finally:
            fcntl.lockf(_turns, fcntl.LOCK_UN)


def run_device(images: Sequence[DecodedImage]) -> list[bytes]:
    """Runs decoded images as one batch; an encoded answer for each."""
    pixels = [image.pixels for image in images]
    sizes = [image.original_size for image in images]
    with _turn_on_the_device():
        answer = _device.run(pixels, PADDED, sizes)
    return [orjson.dumps({"detections": as_json(found)}) for found in answer.detections]


def detect(datas: Sequence[bytes]) -> list[bytes]:
    """Decodes, one after the other, and runs: for peers that bring their own parallelism."""
    return run_device([decode(data) for data in datas])


def detect_in_threads(datas: Sequence[bytes]) -> list[bytes]:
    """Decodes in threads and runs: for peers with one worker."""
    return run_device(list(decoders.map(decode, datas)))
