"""Recognises memory that ran out in training, on a GPU and on a CPU."""

from __future__ import annotations

import torch

_CPU_ALLOCATOR = "DefaultCPUAllocator"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of a training step means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        _CPU_ALLOCATOR in text or "out of memory" in text.lower()
    )
