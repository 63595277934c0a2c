"""A GPU as the pipeline sees it: two streams, pinned memory, events, graphs. torch's part, thin.

Everything that only a card can do is here, so that the rest is tested without one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, cast

import torch
from torch import Tensor

_KEPT_FREE = 0.1  # of the card's memory: for batches that no graph was recorded for


class Event(Protocol):
    """A place in a stream's work (`torch.cuda.Event`)."""

    def record(self) -> None:
        """Puts it behind what the current stream was asked for so far."""

    def wait(self) -> None:
        """The current stream goes on when the place is reached; the host does not wait."""

    def query(self) -> bool:
        """Whether the place is reached."""

    def synchronize(self) -> None:
        """The host waits until it is."""

    def elapsed_time(self, later: Event, /) -> float:
        """Milliseconds of the device's time to a later place; both must be reached."""


class Card(Protocol):
    """What the pipeline needs of a GPU."""

    def pinned(self, num_bytes: int) -> Tensor:
        """Memory of the host that the card reads and writes by itself: uint8 [num_bytes]."""

    def memory(self, num_bytes: int) -> Tensor:
        """Memory of the card: uint8 [num_bytes]."""

    def event(self) -> Event:
        """An event that knows the time."""

    def copying(self) -> AbstractContextManager[object]:
        """Inside, work goes to the stream that copies to the card."""

    def computing(self) -> AbstractContextManager[object]:
        """Inside, work goes to the stream that computes."""

    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Records a CUDA graph of `work`, which has run before.

        Returns:
            Replays it on the current stream: the result lies in the very tensor of each replay.

        Raises:
            RuntimeError: where something in it cannot be recorded, or finds no memory.
        """

    def has_free_memory(self) -> bool:
        """Whether there is memory for another graph."""

    def wait(self) -> None:
        """The host waits until the card has nothing to do.

        Raises:
            RuntimeError: where the card is lost.
        """


class CudaCard:
    """An NVIDIA GPU by torch.

    Args:
        device: a CUDA device; it becomes the process's current one.
    """

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", index)
        torch.cuda.set_device(self._device)  # which takes no device without its number
        self._copying = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._computing = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        # One pool for all graphs: they never run at the same time, so one may use the memory that
        # another needs only while it runs.
        self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.synchronize(self._device)  # weights were loaded on another stream

    def pinned(self, num_bytes: int) -> Tensor:
        """See `Card`."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def memory(self, num_bytes: int) -> Tensor:
        """See `Card`; zeros, so that nothing computes with what lay there."""
        return torch.zeros(num_bytes, dtype=torch.uint8, device=self._device)

    def event(self) -> Event:
        """See `Card`."""
        return cast(Event, torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]

    def copying(self) -> AbstractContextManager[object]:
        """See `Card`."""
        return torch.cuda.stream(self._copying)

    def computing(self) -> AbstractContextManager[object]:
        """See `Card`."""
        return torch.cuda.stream(self._computing)

    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See `Card`."""
        graph = torch.cuda.CUDAGraph()
        # The outer stream is the one to come back to: where a capture fails, torch leaves its own
        # stream current. "thread_local": what other threads do harms no capture.
        with (
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._computing,
                capture_error_mode="thread_local",
            ),
        ):
            found = work()

        def replay() -> Tensor:
            graph.replay()
            return found

        return replay

    def has_free_memory(self) -> bool:
        """See `Card`; what is only kept for later batches counts as free."""
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self._device)
        return free >= _KEPT_FREE * total

    def wait(self) -> None:
        """See `Card`."""
        torch.cuda.synchronize(self._device)
