from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")

_PAGES_OF_A_BLOCK = 1024
_ROUNDS = 50
_ALLOCATE_REPEATEDLY = f"""
import resource, sys, threading
from service.images.allocator import keep_freed_memory

def allocate():
    for _ in range({_ROUNDS}):
        block = bytearray({_PAGES_OF_A_BLOCK} * 4096)
        del block

print(keep_freed_memory())
begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=allocate)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)
"""


def _page_faults(**environment: str) -> tuple[bool, int]:
    """Result of `keep_freed_memory`, and page faults of a thread that allocates 50 x 4 MiB."""
    lines = subprocess.run(
        [sys.executable, "-c", _ALLOCATE_REPEATEDLY],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return lines[0] == "True", int(lines[1])


def test_a_freed_block_is_reused_without_page_faults() -> None:
    kept, faults = _page_faults()
    assert kept
    assert faults < 3 * _PAGES_OF_A_BLOCK


def test_variables_of_glibc_take_precedence() -> None:
    kept, faults = _page_faults(MALLOC_MMAP_THRESHOLD_="65536")
    assert not kept
    assert faults > _ROUNDS * _PAGES_OF_A_BLOCK // 2


_DECODE_A_LARGE_IMAGE = """
import io, sys, threading, time
from PIL import Image
from service.images.allocator import release_freed_memory, keep_freed_memory

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

data = io.BytesIO()
Image.new("RGB", (8000, 8000)).save(data, "PNG")
kept = []

def decode():
    Image.open(io.BytesIO(data.getvalue())).load()
    kept.append(bytearray(5000))  # after the image in the heap

keep_freed_memory()
begun = resident_mib()
thread = threading.Thread(target=decode)
thread.start()
thread.join()
release_freed_memory()
print(resident_mib() - begun)
"""


def test_the_memory_of_a_large_image_is_returned_to_the_kernel() -> None:
    command = [sys.executable, "-c", _DECODE_A_LARGE_IMAGE]
    left = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(left) < 64, f"{left} of 250 MiB were kept"
