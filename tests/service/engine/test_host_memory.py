from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# In a process of its own: the allocator's settings cannot be taken back.
_PRINT_PAGE_FAULTS = """
import resource
from service.engine.host_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(64 << 20)
    del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if {keep}:
    print(keep_freed_memory())
faults()
print(faults())
"""


def _printed(*, keep: bool) -> list[str]:
    command = [sys.executable, "-c", _PRINT_PAGE_FAULTS.format(keep=keep)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again() -> None:
    (before,) = _printed(keep=False)
    done, after = _printed(keep=True)
    assert done == "True"
    assert int(after) < int(before) / 10, (before, after)
