"""Keeps the supervision of an engine running after unexpected exceptions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

_log = structlog.get_logger(__name__)


@contextmanager
def errors_logged() -> Iterator[None]:
    """Logs an exception of the block and continues after the block."""
    try:
        yield
    except Exception:
        _log.exception("unexpected error in the supervision of the engine")


def is_cancellation(error: BaseException) -> bool:
    """Whether the current task is being cancelled, and not only something that it waits for."""
    task = asyncio.current_task()
    cancelling = task is not None and task.cancelling() > 0
    return cancelling and isinstance(error, asyncio.CancelledError)
