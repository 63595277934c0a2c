"""Recognises memory that ran out in training, on a GPU and on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from model.training.errors import TrainingFailed

_CPU_ALLOCATOR = "DefaultCPUAllocator"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of a training step means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        _CPU_ALLOCATOR in text or "out of memory" in text.lower()
    )


@contextmanager
def advice_in_validation() -> Iterator[None]:
    """Re-raises memory that ran out in validation as TrainingFailed."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        text = str(error)[:200]
        raise TrainingFailed(
            f"out of memory in validation: use a smaller --input-side ({text})"
        ) from error
