"""Checks before a model is loaded next to the one that serves: is it another one, does it fit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from service.core.model_control import ModelLoadFailed
from service.core.served_model import ServedModel
from service.memory import process_memory_bytes
from service.supervision.weights_file import FileIdentity

_MIB = 1024 * 1024
# Memory of an engine that does not run at the moment: the libraries, and the weights as they are
# read and as they are used.
_ENGINE_BYTES = 256 * _MIB
_WEIGHTS_COPIES = 2


def is_same_file(served: ServedModel, path: Path | None) -> bool:
    """Whether a path is still the file that a model was loaded from, unchanged.

    Args:
        served: the model.
        path: None if the model has no file; then there is nothing to compare.
    """
    if path is None:
        return False
    with suppress(OSError):
        return FileIdentity.of(path) == served.file.identity
    return False


def check_memory(
    serving: ServedModel, loading: ServedModel, memory_left: Callable[[], int | None]
) -> None:
    """Checks that the engines of a model fit into memory next to those of another one.

    They are expected to take as much as the running ones have taken at most, plus what the new
    weights file is larger.

    Args:
        serving: the model that serves.
        loading: the model to load; its engines are not started yet.
        memory_left: returns the bytes that are left; None if unknown.

    Raises:
        ModelLoadFailed: if they do not fit.
    """
    left = memory_left()
    needed = _needed_bytes(serving, loading)
    if left is not None and needed > left:
        raise ModelLoadFailed(
            f"not enough memory for a second model next to the one that serves: it needs about "
            f"{needed // _MIB} MiB, and {left // _MIB} MiB are left"
        )


def _needed_bytes(serving: ServedModel, loading: ServedModel) -> int:
    old, new = _weights_bytes(serving), _weights_bytes(loading)
    needed = 0
    for pid in serving.engine_pids:
        taken = None if pid is None else process_memory_bytes(pid)
        if taken is None:
            needed += _ENGINE_BYTES + _WEIGHTS_COPIES * new
        else:
            needed += taken + _WEIGHTS_COPIES * max(0, new - old)
    return needed


def _weights_bytes(served: ServedModel) -> int:
    return 0 if served.file.identity is None else served.file.identity.size
